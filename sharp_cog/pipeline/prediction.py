"""One image's splat."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sharp_cog.config.options import PredictOptions
from sharp_cog.config.output_formats import DEFAULT_FORMAT
from sharp_cog.depth.maps import DepthMap
from sharp_cog.errors import OptionError
from sharp_cog.formats import FORMATS, format_of
from sharp_cog.geometry.camera import DEFAULT_FOCAL_LENGTH_MM, Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.simplify import simplify
from sharp_cog.pipeline import output
from sharp_cog.runtime.device import translate_errors


# Not compared by value, because a comparison of tensors has no single truth value. Not slotted, because the cached
# property needs the instance's dictionary.
@dataclass(kw_only=True, eq=False)
class Prediction:
    """One image's splat, ready to be written.

    Attributes:
        predicted: All Gaussians that the model predicted: metric, OpenCV axes, on the pipeline's device.
        camera: Camera of the photograph; its `focal_length_source` names the source of the focal length.
        options: Options that the splat is written with.
        timings: Seconds of each stage: `decode`, `preprocess`, `network`, `unproject`, and `write` once written. A kept
            prediction has `write` alone.
        assumptions: Sentences, without full stops, about what was concluded and not given: the meaning of the depth
            map, and the focal length. Each names the options that say otherwise.
        precision: Type that the network computed in: `float32`, `float16` or `bfloat16`.
        monodepth_m: The model's monodepth, (2, S, S) float32 in metres, front layer first, before an external depth map
            replaced it; None unless `save_internal_depth` asked for it.
        key: Key of the request.
        viewer_dir: Folder of the viewer inside html pages; None is the folder that `scripts/viewer` fills.
    """

    predicted: Gaussians
    camera: Camera
    options: PredictOptions
    timings: dict[str, float] = field(default_factory=dict)
    assumptions: tuple[str, ...] = ()
    precision: str = "float32"
    monodepth_m: NDArray[np.float32] | None = None
    key: str = ""
    viewer_dir: Path | None = None

    @cached_property
    def gaussians(self) -> Gaussians:
        """The Gaussians that the options keep, and that `write` writes.

        Raises:
            PredictionError: The device ran out of memory, or failed.
        """
        # Pruning and writing happen on the device too, after the pipeline has returned.
        with translate_errors(self.predicted.means.device):
            return simplify(
                self.predicted, max_gaussians=self.options.max_gaussians, min_opacity=self.options.min_opacity
            )

    def with_options(self, options: PredictOptions) -> Prediction:
        """Return the same splat with other options of its output."""
        # A new object, so that `gaussians` is computed again; `write` changes its timings, so they are copied.
        return replace(self, options=options, timings=dict(self.timings))

    def write(self, path: Path | str, *, output_format: str | None = None) -> Path:
        """Write the splat with all of its options; `path` appears whole or not at all.

        Args:
            path: The file. Its suffix selects the format, unless the options name a format other than the default.
            output_format: Format to write, whatever the suffix.

        Returns:
            The path.

        Raises:
            OptionError: The suffix belongs to another format than the one in the options.
            PredictionError: A value is not finite, or the device ran out of memory, or failed.
            NotInstalledError: The format needs a package that is not installed.
            OutputError: The file cannot be written.
        """
        path = Path(path)
        options = self.options
        output_format = output_format or _format_for(path, options.output_format)
        if output_format != options.output_format:
            options = replace(options, output_format=output_format)
        start = time.perf_counter()
        with translate_errors(self.predicted.means.device):
            written = output.write(path, self.gaussians, self.camera, options, viewer_dir=self.viewer_dir)
        self.timings["write"] = time.perf_counter() - start
        return written


def assumptions_of(camera: Camera, depth_map: DepthMap | None) -> tuple[str, ...]:
    """Return the sentences for `Prediction.assumptions`."""
    found = []
    if depth_map is not None and depth_map.origin:
        found.append(f"depth taken from the photograph itself ({depth_map.origin}): if that is wrong, give a depth map")
    if depth_map is not None and depth_map.taken_as:
        found.append(f"depth map taken as {depth_map.taken_as}: if that is wrong, set depth_format")
    if camera.focal_length_source == "default":
        found.append(
            f"focal length taken as {DEFAULT_FOCAL_LENGTH_MM:g} mm equivalent, since the image gives none: if that is "
            "wrong, set focal_length_mm"
        )
    # The source also changes when a depth file or a network supplies the focal length.
    if camera.focal_length_source == "exif" and camera.focal_length_reason:
        found.append(
            f"focal length taken as {camera.focal_length_mm_equivalent:.3g} mm equivalent, "
            f"{camera.focal_length_reason}: if that is wrong, set focal_length_mm"
        )
    return tuple(found)


def _format_for(path: Path, chosen: str) -> str:
    """Return the format that the suffix of a path and the options agree on.

    Raises:
        OptionError: The suffix and the options name different formats.
    """
    try:
        named = format_of(path)
    except OptionError:
        # A suffix that belongs to no format leaves the choice to the options.
        return chosen
    # Two formats share the suffix .ply, so the path agrees with either of them.
    if FORMATS[named].suffix == FORMATS[chosen].suffix:
        return chosen
    # The default cannot be told from an option that was left out, so the suffix has precedence.
    if chosen == DEFAULT_FORMAT:
        return named
    raise OptionError(
        f"{path.name} has the suffix of {named}, but output_format is {chosen!r}: use the suffix "
        f"{FORMATS[chosen].suffix}, or set output_format={named!r}"
    )

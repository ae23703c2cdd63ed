"""What a prediction starts from once its bytes are read, and what it gives."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sharp_cog import arrange, depth, formats, images
from sharp_cog.camera import Camera
from sharp_cog.devices import translated
from sharp_cog.gaussians import Gaussians
from sharp_cog.options import PredictOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """One photograph's splat.

    Attributes:
        gaussians: Metric Gaussians, OpenCV axes, on the pipeline's device.
        camera: The photograph's camera; says where the focal length came from.
        options: The options that the prediction was made with, and will be written with.
        timings: Seconds of each stage: `decode`, `preprocess`, `network`, `unproject`, and `write` once written.
        precision: What the network computed in: `float32`, `float16` or `bfloat16`.
        internal_depth_m: SHARP's own depth, (2, 1536, 1536) float32 in metres, front layer first, before a given one
            replaced it; where `save_internal_depth` asked for it.
        viewer_dir: The viewer inside the pages of the format `html`; None is where `scripts/viewer` puts it.
    """

    gaussians: Gaussians
    camera: Camera
    options: PredictOptions
    timings: dict[str, float]
    precision: str = "float32"
    internal_depth_m: NDArray[np.float32] | None = None
    viewer_dir: Path | None = None

    def with_output(self, options: PredictOptions) -> Prediction:
        """The same splat, to be written with other options; of its Gaussians, those that they keep.

        Raises:
            PredictionError: The device ran out of memory, or failed.
        """
        with translated(self.gaussians.means.device):
            gaussians = arrange.keep_visible(
                self.gaussians, max_gaussians=options.max_gaussians, min_opacity=options.min_opacity
            )
        return replace(self, gaussians=gaussians, options=options, timings=dict(self.timings))

    def write(self, path: Path | str) -> Path:
        """Writes the splat in the format of the options; `path` appears whole or not at all.

        Returns:
            The path.

        Raises:
            PredictionError: A value is not finite, or the device ran out of memory, or failed.
            NotInstalledError: The format needs what is not installed.
            OutputError: The file cannot be written.
        """
        start = time.perf_counter()
        with translated(self.gaussians.means.device):
            written = formats.write(Path(path), self.gaussians, self.camera, self.options, viewer_dir=self.viewer_dir)
        self.timings["write"] = time.perf_counter() - start
        return written


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """A request whose bytes have been read and found good: all that `SharpPipeline.predict` needs.

    Attributes:
        source: The photograph.
        depth_map: The caller's, for the same view; None where there is none.
        options: The options of the prediction.
        decode_s: Seconds that it took.
        image_key: Tells the photograph's bytes from any others, as a hash does; None is a picture of its own.
    """

    source: images.SourceImage
    depth_map: depth.DepthMap | None
    options: PredictOptions
    decode_s: float
    image_key: str | None = None

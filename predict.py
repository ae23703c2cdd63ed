"""The Cog predictor: what Replicate, `cog run` and `scripts/serve` serve.

Cog reads the signature of `run` without executing it, so every default, limit, choice and description here is a
literal, and tests compare them with `sharp_cog.config.options`. After a change of the signature run `scripts/schema`.
"""

import re
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path as LocalPath

from cog import BaseRunner, Input, Path

from sharp_cog import InputError, PredictOptions, SharpError, SharpPipeline
from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import DeviceError
from sharp_cog.files.scratch import ScratchFolder
from sharp_cog.formats import FORMATS
from sharp_cog.serving.answers import file_name
from sharp_cog.serving.cog_worker import Watchdog, check_worker
from sharp_cog.text import redact, trace


class Predictor(BaseRunner):  # type: ignore[misc]  # cog carries no types
    """Loads the model once, then turns one photograph after the other into a splat."""

    has_failed = False
    """True once the device has failed, so that the process must be restarted."""

    def setup(self) -> None:
        """Download the checkpoint if it is missing, load it and run everything once."""
        start = time.perf_counter()
        # Cog's inputs and our outputs go to this folder, because Cog leaves both behind (see `_delete_leftovers`).
        self.folder = ScratchFolder()
        tempfile.tempdir = str(self.folder.path)
        try:
            if warning := check_worker():
                print(warning, file=sys.stderr)
            self.watchdog = Watchdog(ServiceSettings.from_environment().request_seconds)
            self.watchdog.start()
            self.pipeline = SharpPipeline.load()
            warm_up_seconds = self.pipeline.warm_up()
        except Exception as error:
            # Cog keeps one line of the error, and drops log lines that it has not passed on when the setup fails.
            print(trace(error), file=sys.stderr, flush=True)
            time.sleep(1)
            raise
        model, device, ready_seconds = self.pipeline.settings.model, self.pipeline.device, time.perf_counter() - start
        print(f"{model} on {device}: ready after {ready_seconds:.1f} s, of which warm-up {warm_up_seconds:.1f} s")

    def run(
        self,
        image: Path = Input(description="The photograph: JPEG, PNG, WebP, TIFF, BMP, GIF, HEIC or AVIF."),
        focal_length_px: float | None = Input(
            default=None,
            description="Focal length in pixels of the upright image; by default from EXIF, else 30 mm equivalent.",
            ge=1,
            le=1000000,
        ),
        focal_length_mm: float | None = Input(
            default=None,
            description="Focal length as a 35 mm equivalent in millimetres, instead of the one in pixels.",
            ge=1,
            le=5000,
        ),
        fov: float | None = Input(
            default=None,
            description="Horizontal field of view of the upright image in degrees, instead of a focal length.",
            ge=1,
            le=170,
        ),
        output_format: str = Input(
            default="ply",
            description="File format: ply for any viewer, spz and sog are small, html is a web page, mp4 a video.",
            choices=["ply", "apple_ply", "compressed_ply", "splat", "spz", "sog", "glb", "usdz", "html", "mp4"],
        ),
        axes: str = Input(
            default="auto",
            description="Coordinate axes; if a viewer shows the scene upside down, try opengl or opencv.",
            choices=["auto", "opencv", "opengl"],
        ),
        max_gaussians: int | None = Input(
            default=None,
            description="Merge neighbouring Gaussians until at most this many are left; the picture stays the same.",
            ge=1,
            le=1000000000,
        ),
        min_opacity: float = Input(
            default=0.0,
            description="Drop Gaussians less opaque than this: 0 keeps all, 0.1 drops haze, 1 keeps opaque ones.",
            ge=0,
            le=1,
        ),
        depth: Path | None = Input(
            default=None,
            description="Depth map of the same view: .npy, .npz, 16-bit PNG in millimetres, float TIFF, .exr or .pfm.",
        ),
        depth_from: str = Input(
            default="auto",
            description="Source of the depth if no map is given.",
            choices=["auto", "embedded"],
        ),
        depth_format: str = Input(
            default="auto",
            description="Meaning of the depth map's values: metres, 0 (near) to 1 (far), or disparity.",
            choices=["auto", "metric", "relative", "inverse-relative"],
        ),
        depth_unit: str = Input(
            default="auto",
            description="Unit of a metric depth map: m, mm, cm, kitti (1/256 m), tum (1/5000 m), or a number.",
        ),
        depth_mode: str = Input(
            default="ratio",
            description="Use of the depth map: ratio and fixed take its depth, align takes only its scale.",
            choices=["ratio", "fixed", "align"],
        ),
        back_surface_factor: float = Input(
            default=1.0,
            description="Depth of the hidden back surface, as a multiple of the map; above 1 selects mode fixed.",
            ge=1,
            le=100,
        ),
        depth_fit: str = Input(
            default="auto",
            description="Fit of the depth map to SHARP's monodepth: by one factor, or by scale and shift of disparity.",
            choices=["auto", "none", "median", "affine"],
        ),
        depth_scale: float = Input(
            default=1.0,
            description="Factor on the depth map, after the fit.",
            ge=0.001,
            le=1000,
        ),
        depth_offset: float = Input(
            default=0.0,
            description="Metres to add to the depth map, after the factor.",
            ge=-100,
            le=100,
        ),
    ) -> Path:
        """Predicts the splat of one photograph."""
        # At the start, since the last prediction's output must outlive its `run`.
        folder = self.folder.path
        _delete_leftovers(folder, keep=(image, depth))
        self.watchdog.begin()
        try:
            options = PredictOptions.from_mapping(
                {
                    "focal_length_px": focal_length_px,
                    "focal_length_mm": focal_length_mm,
                    "fov": fov,
                    "output_format": output_format,
                    "axes": axes,
                    "max_gaussians": max_gaussians,
                    "min_opacity": min_opacity,
                    "depth_from": depth_from,
                    "depth_format": depth_format,
                    "depth_unit": depth_unit,
                    "depth_mode": depth_mode,
                    "back_surface_factor": back_surface_factor,
                    "depth_fit": depth_fit,
                    "depth_scale": depth_scale,
                    "depth_offset": depth_offset,
                }
            )
            depth_bytes = None if depth is None else _content("depth", depth)
            prediction = self.pipeline(_content("image", image), options, depth=depth_bytes)
            name = _output_name(image, FORMATS[output_format].suffix)
            output = prediction.write(folder / name, output_format=output_format)
        except SharpError as error:
            # Cog shows the caller the text of an error and nothing else, so the code stands in front of it.
            self.has_failed |= isinstance(error, DeviceError)
            raise RuntimeError(f"{error.code}: {error}") from error
        # Not `BaseException`, by which Cog cancels a prediction.
        except Exception as error:
            print(trace(error), file=sys.stderr)  # Cog itself logs the message alone.
            raise
        finally:
            self.watchdog.end()
        camera = prediction.camera
        # Cog fails a prediction whose metric changes its type, so measures are always floats.
        self.record_metric("num_gaussians", len(prediction.gaussians))
        self.record_metric("focal_length_px", float(camera.focal_length_px))
        self.record_metric("precision", prediction.precision)
        for stage, seconds in prediction.timings.items():
            self.record_metric(f"{stage}_seconds", float(seconds))
        stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in prediction.timings.items())
        print(f"{len(prediction.gaussians):,} Gaussians, focal length {camera.focal_length_px:.1f} px", end=" ")
        print(f"({camera.focal_length_source}): {stages}")
        for assumption in prediction.assumptions:
            print(assumption)
        return Path(output)

    def healthcheck(self) -> bool:
        """Return whether predictions can work, for Cog's health check."""
        return not self.has_failed


def _delete_leftovers(folder: LocalPath, keep: Iterable[object]) -> None:
    """Delete the files that earlier predictions left in the folder.

    Cog reads an output after `run` has returned and never deletes it. It also leaves the inputs that it has fetched if
    another input of the same prediction cannot be fetched.
    """
    # Cog stores the inputs of this prediction in the same folder. A depth that is not given is None.
    kept = {LocalPath(path) for path in keep if isinstance(path, Path)}
    for path in folder.iterdir():
        if path.is_file() and path not in kept:
            path.unlink()


def _content(name: str, file: object) -> bytes:
    """Return the content of an input that Cog has downloaded or decoded into a file.

    Raises:
        InputError: The file is empty, or the input is text that Cog has passed on as it came. Such text could be the
            path of any file on the server, so it is never opened.
    """
    if not isinstance(file, Path):
        raise InputError(f"{name} is {redact(str(file))[:80]!r}, not a file: send a data URI or an http(s) address")
    content: bytes = file.read_bytes()
    if not content:
        raise InputError(f"{name} has 0 bytes: send a file with content; a data URI needs valid base64")
    return content


def _output_name(image: Path, suffix: str) -> str:
    """Name the splat after the input: Cog's download `/tmp/tmpk3_x9w2dbeach.jpg` becomes `beach.ply`.

    A data URI has no name, so Cog calls its file `file`; its splat is `splat.ply`.
    """
    name = re.sub(r"^tmp[a-z0-9_]{8}", "", image.name)
    name = re.sub(r"[^ -~]", "_", name)  # Not every store accepts other characters in a URL.
    return file_name(None if LocalPath(name).stem == "file" else name, suffix)

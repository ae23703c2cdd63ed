"""`sharp-cog predict`: photographs in, splats out; one bad picture does not stop the rest."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from sharp_cog import checkpoint, formats, images
from sharp_cog.arrange import FAR_SHARE, NEAR_SHARE
from sharp_cog.atomic import open_atomically
from sharp_cog.cli import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, report
from sharp_cog.cli.depth import Source, metric_npy, source_of
from sharp_cog.cli.plan import Job, plan
from sharp_cog.cli.settings import depth_options, output_options, settings_from
from sharp_cog.errors import DepthError, ImageError, InputError, OptionError, SharpError
from sharp_cog.formats import FORMATS
from sharp_cog.options import PredictOptions
from sharp_cog.pipeline import SharpPipeline
from sharp_cog.prediction import Decoded, Prediction
from sharp_cog.preview import movie
from sharp_cog.streaming import NUM_ENCODERS, NUM_READERS, ahead

_SOURCES = {
    "caller": "as given",
    "exif_35mm": "from EXIF",
    "exif": "from EXIF",
    "estimated": "estimated from the picture",
    "default": "assumed, 30 mm equivalent",
}

_LOOK = {
    "html": "look: open it in a browser",
    "mp4": "look: play it",
    "glb": "look: open it in a viewer of glTF that knows KHR_gaussian_splatting",
}
_LOOK_ELSEWHERE = "look: drop it on https://superspl.at/editor, or open it in any viewer of 3D Gaussian splats"


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; see `sharp_cog.cli.main` for the exit code."""
    settings = settings_from(arguments)
    options = PredictOptions(
        focal_length_px=arguments.focal_length_px,
        focal_length_mm=arguments.focal_length_mm,
        output_format=arguments.format or _format_of_output(arguments.output),
        **output_options(arguments),
        **depth_options(arguments),
    )
    if arguments.depth is not None and arguments.depth_from is not None:
        raise OptionError(f"--depth {arguments.depth} and --depth-from {arguments.depth_from} are both given: give one")
    formats.check(options, viewer_dir=settings.viewer_dir)
    if arguments.preview:
        movie.require_renderer()
    jobs = plan(
        [Path(path) for path in arguments.inputs],
        output=arguments.output,
        depth=None if arguments.depth is None else Path(arguments.depth),
        suffix=FORMATS[options.output_format].suffix,
        recursive=arguments.recursive,
    )
    if len(jobs) == 1 and settings.model != "lift" and checkpoint.locate(settings) is None:
        # A broken picture should be known before gigabytes are fetched for it.
        images.decode(_read(jobs[0].image, ImageError), options, max_pixels=settings.max_pixels)
    estimate = None
    if arguments.depth_from is not None:
        estimate = source_of(arguments.depth_from, settings, checkpoint=arguments.estimator_checkpoint)
    pipeline = SharpPipeline.load(settings)
    with tqdm(total=len(jobs), unit="picture", disable=len(jobs) == 1 or not sys.stderr.isatty()) as bar:
        work = _Work(
            pipeline, options, bar=bar, has_preview=arguments.preview, estimate=estimate, verbose=arguments.verbose
        )
        try:
            work.do(jobs)
        except KeyboardInterrupt:
            bar.close()
            print(f"stopped: {work.num_written} of {len(jobs)} splats are written", file=sys.stderr)
            return EXIT_INTERRUPTED
    if work.num_written:
        print(_LOOK.get(options.output_format, _LOOK_ELSEWHERE))
    if len(jobs) > 1:
        print(f"{work.num_written} of {len(jobs)} pictures became splats")
    return EXIT_FAILED if EXIT_FAILED in work.exit_codes else EXIT_BAD_INPUT if work.exit_codes else 0


def _format_of_output(output: str | None) -> str:
    """What the suffix of `-o FILE` asks for; .ply for a folder, and for a suffix that is none of ours."""
    if output is None or output.endswith(("/", "\\")) or Path(output).is_dir():
        return "ply"
    try:
        return formats.format_of(Path(output))
    except OptionError:
        return "ply"


class _Work:
    """Pictures in, splats out; on CUDA the next is read and the last written while the device is at work.

    The device's part is done in the calling thread, so that Ctrl-C stops it, and what has been predicted is written.

    Attributes:
        exit_codes: Of what went wrong.
        num_written: Splats.
    """

    def __init__(
        self,
        pipeline: SharpPipeline,
        options: PredictOptions,
        *,
        bar: tqdm[Any],
        has_preview: bool,
        estimate: Source | None,
        verbose: bool,
    ) -> None:
        self.exit_codes, self.num_written = set[int](), 0
        self._pipeline, self._options, self._bar = pipeline, options, bar
        self._has_preview, self._estimate, self._verbose = has_preview, estimate, verbose

    def do(self, jobs: list[Job]) -> None:
        """Does them all, and tells of each what became of it."""
        num_readers, num_writers = (NUM_READERS, NUM_ENCODERS) if _works_beside(self._pipeline.device) else (0, 0)
        with (
            closing(ahead(jobs, self._read, num_readers)) as read,
            closing(ahead(map(self._predict, read), self._write, num_writers, name="write", drops=False)) as written,
        ):
            for _ in written:
                pass

    def _read(self, job: Job) -> tuple[Job, Decoded | bytes] | None:
        """The picture, decoded with its depth map; its bytes where the depth has to be estimated first."""
        with self._told_of(job):
            image_bytes = _read(job.image, ImageError)
            if self._estimate is not None:
                return job, image_bytes
            depth_bytes = None if job.depth is None else _read(job.depth, DepthError)
            return job, self._pipeline.decode(image_bytes, self._options, depth_bytes=depth_bytes)
        return None

    def _predict(self, read: tuple[Job, Decoded | bytes] | None) -> tuple[Job, Prediction] | None:
        if read is not None:
            job, decoded = read
            with self._told_of(job):
                if isinstance(decoded, bytes):
                    decoded = self._estimated(decoded)
                return job, self._pipeline.predict(decoded)
        return None

    def _estimated(self, image_bytes: bytes) -> Decoded:
        """The picture, with the depth and, unless the picture tells it, the focal length that the estimator finds."""
        assert self._estimate is not None
        options, max_pixels = self._options, self._pipeline.settings.max_pixels
        photograph = images.decode(image_bytes, options, max_pixels=max_pixels)
        found = self._estimate(image_bytes, photograph)
        is_estimated = photograph.camera.focal_length_source == "default" and found.focal_length_px is not None
        if is_estimated:
            options = replace(options, focal_length_px=found.focal_length_px)
        decoded = self._pipeline.decode(image_bytes, options, depth_bytes=metric_npy(found))
        if is_estimated:
            camera = replace(decoded.source.camera, focal_length_source="estimated")
            decoded = replace(decoded, source=replace(decoded.source, camera=camera))
        return decoded

    def _write(self, predicted: tuple[Job, Prediction] | None) -> None:
        if predicted is None:
            return
        job, prediction = predicted
        with self._told_of(job):
            prediction = prediction.with_output(prediction.options)
            prediction.write(job.target)
            if prediction.internal_depth_m is not None:
                _write_internal_depth(job, prediction.internal_depth_m)
            if self._has_preview:
                movie.write_preview(job.preview, prediction.gaussians, prediction.camera)
            with tqdm.external_write_mode():
                self.num_written += 1
                _tell(job, prediction, has_preview=self._has_preview)
            self._bar.update()

    @contextmanager
    def _told_of(self, job: Job) -> Iterator[None]:
        """Tells what is wrong with a picture, so that the others go on."""
        try:
            yield
        except SharpError as error:
            with tqdm.external_write_mode():
                self.exit_codes.add(report(error, verbose=self._verbose, about=f"{job.image}: "))
            self._bar.update()


def _works_beside(device: torch.device) -> bool:
    """Whether a device leaves the CPU free, and takes work from other threads meanwhile.

    On the CPU torch keeps all cores busy itself; Metal has one queue for all threads.
    """
    return device.type == "cuda"


def _write_internal_depth(job: Job, depth_m: NDArray[np.float32]) -> None:
    """Writes SHARP's own depth as it is, and its two layers side by side in colours."""
    with open_atomically(job.internal_depth) as file:
        np.save(file, depth_m)
    near_m, far_m = (float(value) for value in np.quantile(depth_m, (NEAR_SHARE, FAR_SHARE)))
    movie.write_picture(
        job.internal_depth.with_suffix(".png"), movie.in_colors(np.concatenate(list(depth_m), axis=1), near_m, far_m)
    )


def _read(path: Path, error_type: type[InputError]) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise error_type(f"{path} cannot be read: {error.strerror or error}") from error


def _tell(job: Job, prediction: Prediction, *, has_preview: bool) -> None:
    """A line of what was written, and one of how long each stage took."""
    target = job.target
    camera, megabytes = prediction.camera, target.stat().st_size / 1e6
    print(
        f"{target}: {len(prediction.gaussians):,} Gaussians, {megabytes:.1f} MB, focal length "
        f"{camera.focal_length_px:.0f} px ({_SOURCES[camera.focal_length_source]})"
    )
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in prediction.timings.items())
    if prediction.internal_depth_m is not None:
        print(f"  {job.internal_depth}: SHARP's own depth, front and back")
    if has_preview:
        print(f"  {job.preview}: a preview")
    print(f"  {sum(prediction.timings.values()):.2f} s: {stages}")

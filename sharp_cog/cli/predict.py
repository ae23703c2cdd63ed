"""`sharp-cog predict`: photographs in, splats out; one bad picture does not stop the rest."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sharp_cog import formats
from sharp_cog.cli import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, report
from sharp_cog.cli.plan import Job, plan
from sharp_cog.cli.settings import depth_options, output_options, settings_from
from sharp_cog.config.options import PredictOptions
from sharp_cog.depth import estimators
from sharp_cog.depth.estimators import Estimator
from sharp_cog.errors import ImageError, OptionError, SharpError
from sharp_cog.files.atomic import open_atomically
from sharp_cog.files.read import read_bytes
from sharp_cog.formats import FORMATS
from sharp_cog.geometry.transform import FAR_SHARE, NEAR_SHARE
from sharp_cog.imaging import images
from sharp_cog.pipeline import output
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.pipeline.request import Request
from sharp_cog.preview import movie
from sharp_cog.runtime import checkpoint
from sharp_cog.runtime.device import find_device

_SOURCES = {
    "caller": "as given",
    "exif_35mm": "from EXIF",
    "exif": "from EXIF",
    "estimated": "estimated from the picture",
    "default": "assumed, 30 mm equivalent",
}


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
    output.check(options, viewer_dir=settings.viewer_dir)
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
        images.decode(read_bytes(jobs[0].image, ImageError), options, max_pixels=settings.max_pixels)
    estimate = None
    if arguments.depth_from is not None:
        device = find_device(settings.device)
        estimate = estimators.load(arguments.depth_from, checkpoint=arguments.estimator_checkpoint, device=device)
    pipeline = SharpPipeline.load(settings)
    with tqdm(total=len(jobs), unit="picture", disable=len(jobs) == 1 or not sys.stderr.isatty()) as bar:
        work = _Work(pipeline, jobs, bar=bar, has_preview=arguments.preview, verbose=arguments.verbose)
        try:
            work.run(options, estimate)
        except KeyboardInterrupt:
            bar.close()
            print(f"stopped: {work.num_written} of {len(jobs)} splats are written", file=sys.stderr)
            return EXIT_INTERRUPTED
    if work.num_written:
        print(FORMATS[options.output_format].viewing_hint)
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
    """Turns the planned images into splats, and reports each of them.

    Attributes:
        exit_codes: Exit codes of the images that failed.
        num_written: Number of splats written.
    """

    def __init__(
        self,
        pipeline: SharpPipeline,
        jobs: list[Job],
        *,
        bar: tqdm[Any],
        has_preview: bool,
        verbose: bool,
    ) -> None:
        self.exit_codes, self.num_written = set[int](), 0
        self._pipeline, self._jobs, self._bar = pipeline, jobs, bar
        self._has_preview, self._verbose = has_preview, verbose

    def run(self, options: PredictOptions, estimate: Estimator | None) -> None:
        """Predict and write all images; what is wrong with one does not stop the others.

        Args:
            options: Options of all predictions.
            estimate: Network that estimates the depth; None uses the planned depth maps, if there are any.
        """
        requests = (
            Request(image=job.image, depth=estimate or job.depth, options=options, key=str(index))
            for index, job in enumerate(self._jobs)
        )
        with closing(self._pipeline.map(requests, encode=self._write)) as outcomes:  # type: ignore[type-var]
            for job, outcome in zip(self._jobs, outcomes, strict=True):
                with tqdm.external_write_mode():
                    if isinstance(outcome, SharpError):
                        self.exit_codes.add(report(outcome, verbose=self._verbose, about=f"{job.image}: "))
                    else:
                        _print_written(job, outcome, has_preview=self._has_preview)
                self._bar.update()

    def _write(self, prediction: Prediction) -> Prediction:
        """Write one image's splat and what belongs beside it; on CUDA in a thread beside the device's."""
        job = self._jobs[int(prediction.key)]
        prediction.write(job.target, output_format=prediction.options.output_format)
        if prediction.monodepth_m is not None:
            _write_internal_depth(job, prediction.monodepth_m)
        if self._has_preview:
            movie.write_preview(job.preview, prediction.gaussians, prediction.camera)
        self.num_written += 1
        return prediction


def _write_internal_depth(job: Job, depth_m: NDArray[np.float32]) -> None:
    """Writes SHARP's own depth as it is, and its two layers side by side in colours."""
    with open_atomically(job.internal_depth) as file:
        np.save(file, depth_m)
    near_m, far_m = (float(value) for value in np.quantile(depth_m, (NEAR_SHARE, FAR_SHARE)))
    movie.write_picture(
        job.internal_depth.with_suffix(".png"), movie.in_colors(np.concatenate(list(depth_m), axis=1), near_m, far_m)
    )


def _print_written(job: Job, prediction: Prediction, *, has_preview: bool) -> None:
    """A line of what was written, and one of how long each stage took."""
    target = job.target
    camera, megabytes = prediction.camera, target.stat().st_size / 1e6
    print(
        f"{target}: {len(prediction.gaussians):,} Gaussians, {megabytes:.1f} MB, focal length "
        f"{camera.focal_length_px:.0f} px ({_SOURCES[camera.focal_length_source]})"
    )
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in prediction.timings.items())
    if prediction.monodepth_m is not None:
        print(f"  {job.internal_depth}: SHARP's own depth, front and back")
    if has_preview:
        print(f"  {job.preview}: a preview")
    print(f"  {sum(prediction.timings.values()):.2f} s: {stages}")

"""`sharp-cog predict`: turn photographs into splats; one bad image does not stop the rest."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sharp_cog import estimators, formats
from sharp_cog.cli import EXIT_FAILED, EXIT_INTERRUPTED, free, report
from sharp_cog.cli.depth import depth_colors
from sharp_cog.cli.plan import Job, plan
from sharp_cog.cli.settings import in_flags, options_from, settings_from
from sharp_cog.cli.targets import Existing, format_of_output
from sharp_cog.config.models import SPLAT_MODELS, require_licence
from sharp_cog.config.options import PredictOptions
from sharp_cog.errors import DepthError, ImageError, OptionError, SharpError
from sharp_cog.files.atomic import open_atomically
from sharp_cog.files.read import read_bytes
from sharp_cog.formats import FORMATS
from sharp_cog.imaging import images
from sharp_cog.pipeline import output
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.pipeline.request import EMBEDDED, Request
from sharp_cog.preview import movie
from sharp_cog.runtime import checkpoint
from sharp_cog.runtime.device import find_device

_FOCAL_LENGTH_SOURCES = {
    "caller": "as given",
    "exif_35mm": "from EXIF",
    "exif": "from EXIF",
    "intrinsics": "from the file's camera matrix",
    "depth_file": "from the depth file",
    "estimated": "estimated from the image",
    "default": "assumed, 30 mm equivalent",
}


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code, as `sharp_cog.cli.main` documents it."""
    settings = settings_from(arguments)
    if arguments.free:
        settings = free.settings_for(settings, arguments.model)
    output_format = arguments.format or format_of_output(arguments.output)
    if arguments.depth is not None and arguments.depth_from is not None:
        raise OptionError(f"--depth {arguments.depth} and --depth-from {arguments.depth_from} are both given: give one")
    is_embedded = EMBEDDED in (arguments.depth, arguments.depth_from)
    options = options_from(
        arguments, PredictOptions, output_format=output_format, depth_from=EMBEDDED if is_embedded else "auto"
    )
    depth = None if arguments.depth in (None, EMBEDDED) else Path(arguments.depth)
    estimator_name = None if is_embedded else arguments.depth_from
    # All checks come before anything is loaded or written, and the cheap ones first.
    require_licence(SPLAT_MODELS[settings.model], commercial=settings.commercial)
    output.check(options, viewer_dir=settings.viewer_dir)
    if arguments.preview:
        movie.require_renderer()
    jobs = plan(
        [Path(path) for path in arguments.inputs],
        output=arguments.output,
        depth=depth,
        suffix=FORMATS[options.output_format].suffix,
        recursive=arguments.recursive,
    )
    if arguments.format is None and jobs[0].target.suffix and str(jobs[0].target) == arguments.output:
        formats.format_of(jobs[0].target)  # The suffix of a file must say what it is.
    for job in jobs:
        formats.require_levels_name(job.target, options)
    existing = Existing(overwrite=arguments.overwrite, skip=arguments.skip_existing)
    left = existing.leaves([job.target for job in jobs], is_splat_format=options.output_format != "mp4")
    jobs = [job for job in jobs if job.target in left]
    if not jobs:
        return 0
    needs_depth = settings.model == "lift" and depth is None and arguments.depth_from is None and not is_embedded
    if arguments.free and needs_depth:
        is_interactive = sys.stdin.isatty() and sys.stderr.isatty()
        estimator_name = free.network_for(
            [job.image for job in jobs], max_pixels=settings.max_pixels, is_interactive=is_interactive
        )
    elif len(jobs) == 1 and needs_depth and free.lacks_depth(jobs[0].image, settings.max_pixels):
        raise DepthError(
            f"the model 'lift' needs a depth map, and {jobs[0].image.name} carries none: add --depth FILE or "
            "--depth-from NAME, or choose --model sharp"
        )
    if len(jobs) == 1 and settings.model != "lift" and checkpoint.locate(settings) is None:
        # Loading would download gigabytes. An image that cannot be used should be reported before that.
        images.decode(read_bytes(jobs[0].image, ImageError), options, max_pixels=settings.max_pixels)
    # The estimator comes first: a missing package or checkpoint is reported before gigabytes are loaded.
    estimator = None
    if estimator_name is not None:
        device = find_device(settings.device)
        estimator = estimators.load(
            estimator_name,
            checkpoint=arguments.estimator_checkpoint,
            device=device,
            commercial=settings.commercial,
        )
    requests = [
        Request(image=job.image, depth=job.depth or estimator, options=options, key=str(index))
        for index, job in enumerate(jobs)
    ]
    if arguments.free and needs_depth and estimator is not None:
        # The photograph's own depth is measured, so it is better than an estimate.
        requests = [
            replace(request, depth=None) if free.carries_depth(job.image) else request
            for request, job in zip(requests, jobs, strict=True)
        ]
    pipeline = SharpPipeline.load(settings)
    with tqdm(total=len(jobs), unit="image", disable=len(jobs) == 1 or not sys.stderr.isatty()) as bar:
        batch = _Batch(jobs, bar=bar, has_preview=arguments.preview, verbose=arguments.verbose)
        try:
            batch.run(pipeline, requests)
        except KeyboardInterrupt:
            bar.close()
            print(f"stopped: {len(batch.written)} of {len(jobs)} splats are written", file=sys.stderr)
            return EXIT_INTERRUPTED
    if batch.written:
        print(FORMATS[options.output_format].viewing_hint)
    if len(jobs) > 1:
        print(f"{len(batch.written)} of {len(jobs)} images became splats")
    return EXIT_FAILED if EXIT_FAILED in batch.exit_codes else max(batch.exit_codes, default=0)


class _Batch:
    """Predicts and writes the planned images, and reports each of them.

    Attributes:
        exit_codes: Exit codes of the images that failed.
        written: Splats written so far, with everything that belongs beside them.
    """

    def __init__(self, jobs: list[Job], *, bar: tqdm[Any], has_preview: bool, verbose: bool) -> None:
        self.exit_codes = set[int]()
        self.written: list[Path] = []
        self._jobs, self._bar = jobs, bar
        self._has_preview, self._verbose = has_preview, verbose

    def run(self, pipeline: SharpPipeline, requests: list[Request]) -> None:
        """Process all requests; an error of one image is reported and does not stop the others."""
        # Closing the iterator waits for the splats that are being written, also after Ctrl-C.
        with closing(pipeline.map(requests, encode=self._write)) as outcomes:  # type: ignore[type-var]
            # Outcomes come in the order of the requests.
            for job, outcome in zip(self._jobs, outcomes, strict=True):
                if isinstance(outcome, SharpError):
                    with tqdm.external_write_mode():
                        self.exit_codes.add(report(outcome, verbose=self._verbose, about=f"{job.image}: "))
                self._bar.update()

    def _write(self, prediction: Prediction) -> None:
        """Write one image's splat and its side files, and print them.

        On CUDA the pipeline calls this in a thread. A splat that is finished after Ctrl-C is printed and counted too.
        """
        job = self._jobs[int(prediction.key)]
        prediction.write(job.target, output_format=prediction.options.output_format)
        if prediction.monodepth_m is not None:
            _write_monodepth(job, prediction.monodepth_m)
        if self._has_preview:
            movie.write_preview(job.preview, prediction.gaussians, prediction.camera)
        # After its side files, so that an interrupted run counts only what is complete.
        self.written.append(job.target)
        # Lines appear above the progress bar; printed directly, they would break it.
        with tqdm.external_write_mode():
            self._print_written(job, prediction)

    def _print_written(self, job: Job, prediction: Prediction) -> None:
        """Print one line about the splat, one for each side file, and one with the seconds of each stage."""
        camera, megabytes = prediction.camera, formats.size_with_levels(job.target) / 1e6
        print(
            f"{job.target}: {len(prediction.gaussians):,} Gaussians, {megabytes:.1f} MB, focal length "
            f"{camera.focal_length_px:.0f} px ({_FOCAL_LENGTH_SOURCES[camera.focal_length_source]})"
        )
        for assumption in prediction.assumptions:
            print(f"  {job.image.name}: {in_flags(assumption)}")
        if prediction.monodepth_m is not None:
            print(f"  {job.internal_depth}: SHARP's monodepth, front and back")
        if self._has_preview:
            print(f"  {job.preview}: a preview")
        stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in prediction.timings.items())
        print(f"  {sum(prediction.timings.values()):.2f} s: {stages}")


def _write_monodepth(job: Job, depth_m: NDArray[np.float32]) -> None:
    """Write SHARP's monodepth as an array, and its two layers side by side as an image."""
    with open_atomically(job.internal_depth) as file:
        np.save(file, depth_m)
    movie.write_image(job.internal_depth.with_suffix(".png"), depth_colors(np.concatenate(list(depth_m), axis=1)))

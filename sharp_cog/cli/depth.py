"""`sharp-cog depth`: metric depth maps of photographs, by other networks or by SHARP's own, ready for `--depth`."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from sharp_cog.cli import EXIT_BAD_INPUT, EXIT_FAILED, report
from sharp_cog.cli.plan import plan
from sharp_cog.cli.settings import settings_from
from sharp_cog.config.options import PredictOptions
from sharp_cog.config.settings import Settings
from sharp_cog.depth import estimators
from sharp_cog.depth.estimators import Estimate
from sharp_cog.depth.files import METRIC_FIELD
from sharp_cog.errors import ImageError, OptionError, SharpError
from sharp_cog.files.atomic import open_atomically
from sharp_cog.geometry.transform import FAR_SHARE, NEAR_SHARE
from sharp_cog.imaging import images
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.preview import movie
from sharp_cog.runtime.device import find_device

Source = Callable[[bytes, images.SourceImage], Estimate]
"""From a picture's bytes, and the picture, to its depth."""


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; see `sharp_cog.cli.main` for the exit code."""
    settings = settings_from(arguments)
    inputs = [Path(path) for path in arguments.inputs]
    output = arguments.output
    if output is not None and not output.endswith((".npy", "/", "\\")):
        output += "/"  # A folder, also for one picture.
    jobs = plan(inputs, output=output, depth=None, suffix=".npy", recursive=arguments.recursive)
    estimate = source_of(arguments.estimator, settings, checkpoint=arguments.estimator_checkpoint)
    exit_codes, num_written = set[int](), 0
    for job in tqdm(jobs, unit="picture", disable=len(jobs) == 1 or not sys.stderr.isatty()):
        try:
            image_bytes = read_picture(job.image)
            photograph = images.decode(image_bytes, max_pixels=settings.max_pixels)
            found = estimate(image_bytes, photograph)
            write(job.target, found)
        except SharpError as error:
            exit_codes.add(report(error, verbose=arguments.verbose, about=f"{job.image}: "))
            continue
        num_written += 1
        near_m, middle_m, far_m = np.quantile(found.depth_m, (NEAR_SHARE, 0.5, FAR_SHARE))
        print(f"{job.target}: {near_m:.2f} m near, {middle_m:.2f} m in the middle, {far_m:.2f} m far")
        if photograph.camera.focal_length_source == "default" and found.focal_length_px is not None:
            print(f"  focal length estimated: give predict --focal-length-px {found.focal_length_px:.0f}")
    if num_written:
        print(f"use: sharp-cog predict PICTURE --depth {jobs[0].target if len(jobs) == 1 else jobs[0].target.parent}")
    return EXIT_FAILED if EXIT_FAILED in exit_codes else EXIT_BAD_INPUT if exit_codes else 0


def source_of(
    name: str, settings: Settings, *, checkpoint: str | None, pipeline: SharpPipeline | None = None
) -> Source:
    """An estimator by name; `sharp` is the front layer of SHARP's own depth, of `pipeline` if it is loaded already."""
    if name == "sharp":
        if settings.model != "sharp":
            raise OptionError(f"estimator sharp needs the model sharp, and SHARP_MODEL is {settings.model!r}: unset it")
        return partial(_by_sharp, pipeline or SharpPipeline.load(settings))
    estimator = estimators.load(name, checkpoint=checkpoint, device=find_device(settings.device))
    return lambda image_bytes, photograph: estimator(photograph)


def _by_sharp(pipeline: SharpPipeline, image_bytes: bytes, photograph: images.SourceImage) -> Estimate:
    prediction = pipeline(image_bytes, PredictOptions(save_internal_depth=True))
    assert prediction.monodepth_m is not None
    front_m = torch.from_numpy(prediction.monodepth_m[:1]).unsqueeze(0)
    size = (photograph.camera.height, photograph.camera.width)
    return Estimate(depth_m=F.interpolate(front_m, size=size, mode="bilinear", align_corners=True)[0, 0].numpy())


def read_picture(path: Path) -> bytes:
    """The bytes of a picture.

    Raises:
        ImageError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}") from error


def metric_npy(estimate: Estimate) -> bytes:
    """An .npy that says of itself that it holds metres."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(estimate.depth_m, dtype="<f4").view([(METRIC_FIELD, "<f4")]))
    return file.getvalue()


def in_colors(estimate: Estimate) -> Image.Image:
    """The map in colours, near is yellow and far is violet."""
    near_m, far_m = (float(value) for value in np.quantile(estimate.depth_m, (NEAR_SHARE, FAR_SHARE)))
    return Image.fromarray(movie.in_colors(estimate.depth_m, near_m, far_m))


def write(path: Path, estimate: Estimate) -> None:
    """Writes the map, and beside it a picture of it."""
    with open_atomically(path) as file:
        file.write(metric_npy(estimate))
    with open_atomically(path.with_suffix(".depth.webp")) as file:
        in_colors(estimate).save(file, "WEBP", quality=90)

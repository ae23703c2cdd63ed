"""`sharp-cog depth`: make metric depth maps of photographs, with SHARP or another network, for `predict --depth`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tqdm import tqdm

from sharp_cog import estimators
from sharp_cog.cli import EXIT_FAILED, report
from sharp_cog.cli.plan import plan
from sharp_cog.cli.settings import settings_from
from sharp_cog.cli.targets import Existing
from sharp_cog.config.options import PredictOptions
from sharp_cog.config.settings import Settings
from sharp_cog.depth.files import write_metric_npy
from sharp_cog.depth.maps import FAR_DEPTH_M
from sharp_cog.errors import ImageError, OptionError, SharpError
from sharp_cog.estimators import Estimate
from sharp_cog.files.read import read_bytes
from sharp_cog.geometry.transform import FAR_SHARE, NEAR_SHARE
from sharp_cog.imaging import images
from sharp_cog.imaging.images import SourceImage
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.preview import movie
from sharp_cog.runtime.device import find_device

EstimateDepth = Callable[[Path, SourceImage], Estimate]
"""Function that estimates the depth of an image, given its path and its decoded pixels."""


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code, as `sharp_cog.cli.main` documents it."""
    settings = settings_from(arguments)
    output = arguments.output
    if output is not None and not output.endswith((".npy", "/", "\\")):
        output += "/"  # The output is a folder even for one image, unless it is named like a depth map.
    jobs = plan(
        [Path(path) for path in arguments.inputs],
        output=output,
        depth=None,
        suffix=".npy",
        recursive=arguments.recursive,
    )
    existing = Existing(overwrite=arguments.overwrite, skip=arguments.skip_existing)
    left = existing.leaves([job.target for job in jobs], is_splat_format=False)
    jobs = [job for job in jobs if job.target in left]
    if not jobs:
        return 0
    estimate_depth = load_estimator(arguments.estimator, settings, checkpoint=arguments.estimator_checkpoint)
    exit_codes, num_written = set[int](), 0
    for job in tqdm(jobs, unit="image", disable=len(jobs) == 1 or not sys.stderr.isatty()):
        try:
            source = images.decode(read_bytes(job.image, ImageError), max_pixels=settings.max_pixels)
            estimate = estimate_depth(job.image, source)
            write_depth(job.target, estimate, estimator=arguments.estimator)
        except SharpError as error:
            with tqdm.external_write_mode():
                exit_codes.add(report(error, verbose=arguments.verbose, about=f"{job.image}: "))
            continue
        num_written += 1
        # A sky at infinity is shown at the distance that it gets in a splat.
        depth_m = np.minimum(estimate.depth_m, FAR_DEPTH_M)
        near_m, middle_m, far_m = np.quantile(depth_m, (NEAR_SHARE, 0.5, FAR_SHARE))
        with tqdm.external_write_mode():
            print(f"{job.target}: {near_m:.2f} m near, {middle_m:.2f} m in the middle, {far_m:.2f} m far")
            if source.camera.focal_length_source == "default" and estimate.focal_length_px is not None:
                print(f"  focal length estimated: give predict --focal-length-px {estimate.focal_length_px:.0f}")
    if num_written:
        # Maps beside the images of many folders are found from the folder that was named.
        folder = jobs[0].target.parent if len(arguments.inputs) > 1 else arguments.inputs[0]
        used = jobs[0].target if len(jobs) == 1 else output or folder
        print(f"use: sharp-cog predict IMAGE --depth {used}")
    return EXIT_FAILED if EXIT_FAILED in exit_codes else max(exit_codes, default=0)


def load_estimator(
    name: str, settings: Settings, *, checkpoint: str | None, pipeline: SharpPipeline | None = None
) -> EstimateDepth:
    """Load a depth estimator.

    Args:
        name: Name of an estimator; `sharp` is the front layer of SHARP's monodepth.
        settings: Settings that select the device, and SHARP's weights.
        checkpoint: Checkpoint of another network than SHARP; None takes its usual one.
        pipeline: The pipeline, if it is loaded already, so that `sharp` does not load it again.

    Raises:
        OptionError: The settings choose another model than SHARP for the estimator `sharp`.
    """
    if name == "sharp":
        if settings.model != "sharp":
            raise OptionError(f"estimator sharp needs the model sharp, and SHARP_MODEL is {settings.model!r}: unset it")
        return partial(_front_layer, pipeline or SharpPipeline.load(settings))
    device = find_device(settings.device)
    estimator = estimators.load(name, checkpoint=checkpoint, device=device, commercial=settings.commercial)
    # The networks need only the pixels, and SHARP only the path: see `_front_layer`.
    return lambda path, source: estimator(source)


def _front_layer(pipeline: SharpPipeline, path: Path, source: SourceImage) -> Estimate:
    """Return the front layer of SHARP's monodepth, resized to the image."""
    # The pipeline is given the path, not the pixels: it keeps the encoding of a file, for the next prediction from it.
    prediction = pipeline(path, PredictOptions(save_internal_depth=True))
    assert prediction.monodepth_m is not None
    front_m = torch.from_numpy(prediction.monodepth_m[:1]).unsqueeze(0)
    size = (source.camera.height, source.camera.width)
    return Estimate(depth_m=F.interpolate(front_m, size=size, mode="bilinear", align_corners=True)[0, 0].numpy())


def write_depth(path: Path, estimate: Estimate, *, estimator: str) -> None:
    """Write a depth map as `NAME.npy` with its description, and an image of it beside it as `NAME.depth.webp`."""
    write_metric_npy(path, estimate.depth_m, estimator=estimator, focal_length_px=estimate.focal_length_px)
    movie.write_image(path.with_suffix(".depth.webp"), depth_colors(estimate.depth_m))


def depth_colors(depth_m: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return an (height, width, 3) image of a depth map: yellow is near, violet is far."""
    near_m, far_m = (float(value) for value in np.quantile(depth_m, (NEAR_SHARE, FAR_SHARE)))
    return movie.in_colors(depth_m, near_m, far_m)

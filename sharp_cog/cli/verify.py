"""`sharp-cog verify`: our network against Apple's own package on a picture of the caller's."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import cast

from sharp_cog.cli import EXIT_FAILED
from sharp_cog.cli.settings import settings_from
from sharp_cog.config.options import PredictOptions
from sharp_cog.errors import ImageError
from sharp_cog.imaging import images
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.runtime.ml_sharp import MLSharp
from sharp_cog.runtime.preprocess import preprocess
from sharp_cog.runtime.runner import SharpRunner
from sharp_cog.runtime.verify import compare


def run(arguments: argparse.Namespace) -> int:
    """Prints a table of differences; 1 if one is larger than the tolerance."""
    settings = settings_from(arguments)
    options = PredictOptions(focal_length_px=arguments.focal_length_px, focal_length_mm=arguments.focal_length_mm)
    try:
        image_bytes = Path(arguments.image).read_bytes()
    except OSError as error:
        raise ImageError(f"{arguments.image} cannot be read: {error.strerror or error}") from error
    source = images.decode(image_bytes, options, max_pixels=settings.max_pixels)
    apples = SharpPipeline.load(replace(settings, model="ml-sharp"))
    ours = SharpPipeline.load(replace(settings, model="sharp", precision="float32"))
    model_input = preprocess(source, None, size=ours.predictor.image_size, device=ours.device)
    apples_network, our_network = cast(MLSharp, apples.predictor).network, cast(SharpRunner, ours.predictor).model
    differences = compare(apples.predictor, apples_network, ours.predictor, our_network, model_input)
    print(f"{'stage':<20} {'relative':>10} {'largest':>10}")
    for difference in differences:
        is_worse = not difference.relative <= arguments.tolerance
        print(
            f"{difference.stage:<20} {difference.relative:>10.2e} {difference.maximum:>10.2e}"
            f"{'  over the tolerance' if is_worse else ''}"
        )
    worst = max(difference.relative for difference in differences)
    is_same = worst <= arguments.tolerance
    print(f"{'the same' if is_same else 'NOT the same'} within {arguments.tolerance:g}: at worst {worst:.2e}")
    return 0 if is_same else EXIT_FAILED

"""`sharp-cog verify`: compare this package's network with Apple's own package on one image."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import cast

from sharp_cog.cli import EXIT_FAILED
from sharp_cog.cli.settings import options_from, settings_from
from sharp_cog.config.options import PredictOptions
from sharp_cog.errors import ImageError
from sharp_cog.files.read import read_bytes
from sharp_cog.imaging import images
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.runtime.ml_sharp import MLSharp
from sharp_cog.runtime.preprocess import preprocess
from sharp_cog.runtime.runner import SharpRunner
from sharp_cog.runtime.verify import compare


def run(arguments: argparse.Namespace) -> int:
    """Print a table of differences, and return 1 if one is larger than the tolerance."""
    settings = settings_from(arguments)
    options = options_from(arguments, PredictOptions)
    source = images.decode(read_bytes(Path(arguments.image), ImageError), options, max_pixels=settings.max_pixels)
    reference = SharpPipeline.load(replace(settings, model="ml-sharp"))
    # Float32 whatever the settings say, since Apple's package computes in it. No CUDA graphs, because their warm-up
    # and capture would run the modules more often than Apple's, and a replay would not run them at all.
    candidate = SharpPipeline.load(replace(settings, model="sharp", precision="float32", cuda_graphs=False))
    differences = compare(
        reference.predictor,
        cast(MLSharp, reference.predictor).network,
        candidate.predictor,
        cast(SharpRunner, candidate.predictor).model,
        preprocess(source, None, size=candidate.predictor.image_size, device=candidate.device),
    )
    print(f"{'stage':<20} {'relative':>10} {'largest':>10}")
    is_same = True
    for difference in differences:
        is_worse = not difference.relative <= arguments.tolerance  # True for NaN too, which `max` below may pass over.
        is_same = is_same and not is_worse
        print(
            f"{difference.stage:<20} {difference.relative:>10.2e} {difference.maximum:>10.2e}"
            f"{'  over the tolerance' if is_worse else ''}"
        )
    worst = max(difference.relative for difference in differences)
    print(f"{'the same' if is_same else 'NOT the same'} within {arguments.tolerance:g}: at worst {worst:.2e}")
    return 0 if is_same else EXIT_FAILED

"""`sharp-cog verify`: our network against Apple's own package, stage by stage."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from sharp_cog.cli.predict import read_bytes
from sharp_cog.cli.report import add_setting_arguments, settings_from
from sharp_cog.errors import DepthError, ImageError

HELP = "compare our network with Apple's own package on a picture"
DESCRIPTION = """\
Runs our network and Apple's own package on a picture and prints the differences stage by stage.

Needs Apple's package; where it is not installed, the error says how to install it."""
EXAMPLES = """\
example:
  sharp-cog verify photo.jpg
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a picture")
    parser.add_argument("--depth", type=Path, metavar="FILE", help="a depth map to align to")
    add_setting_arguments(parser, with_model=False)


def run(args: argparse.Namespace) -> int:
    """Prints the differences of every stage."""
    settings = settings_from(args)
    image_bytes = read_bytes(args.image, ImageError)
    depth_bytes = None if args.depth is None else read_bytes(args.depth, DepthError)

    from torch import nn

    from sharp_cog import depth, images
    from sharp_cog.network.ml_sharp import MLSharp
    from sharp_cog.network.verify import compare
    from sharp_cog.pipeline import SharpPipeline
    from sharp_cog.preprocess import preprocess

    source = images.decode(image_bytes, max_pixels=settings.max_pixels)
    depth_map = None if depth_bytes is None else depth.decode(depth_bytes, source.camera)
    apples = SharpPipeline.load(replace(settings, model="ml-sharp"))
    ours = SharpPipeline.load(replace(settings, model="sharp"))
    assert isinstance(apples.predictor, MLSharp)
    assert isinstance(ours.predictor, nn.Module)
    model_input = preprocess(source, depth_map, device=ours.device)
    differences = compare(
        apples.predictor,
        apples.predictor.predictor,
        ours.predictor,
        image=model_input.image,
        disparity_factor=model_input.disparity_factor,
        depth=model_input.depth_m,
    )
    print(f"{'stage':24} {'relative':>10} {'largest':>10}")
    for difference in differences:
        print(f"{difference.stage:24} {difference.relative:10.2e} {difference.maximum:10.2e}")
    return 0

"""`sharp-cog compare-depth`: compare the depth of SHARP and of other networks for one image, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from sharp_cog.cli.depth import depth_colors, load_estimator, write_depth
from sharp_cog.cli.plan import make_folder
from sharp_cog.cli.settings import settings_from
from sharp_cog.config.models import ESTIMATORS
from sharp_cog.config.options import PredictOptions
from sharp_cog.errors import ImageError, OptionError
from sharp_cog.files.atomic import open_atomically
from sharp_cog.files.read import read_bytes
from sharp_cog.imaging import images
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.preview import movie

_WIDTH = 480
"""Width of an image on the comparison sheet, in pixels."""
_TEXT_HEIGHT = 24
"""Height of a line of text on the comparison sheet, in pixels."""


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code, as `sharp_cog.cli.main` documents it."""
    # Before the networks are loaded, which takes minutes.
    movie.require_renderer()
    settings = settings_from(arguments)
    checkpoints = {
        "depth-pro": arguments.depth_pro,
        "depth-anything-v2-metric": arguments.depth_anything,
        "depth-anything-3-metric": arguments.depth_anything_3,
        "moge-2": arguments.moge,
    }
    names = arguments.estimators.split(",")
    for name in names:
        if name not in ("sharp", *ESTIMATORS):
            raise OptionError(f"{name!r} is no estimator: choose from sharp, {', '.join(ESTIMATORS)}")
    path, folder = Path(arguments.image), Path(arguments.output)
    source = images.decode(read_bytes(path, ImageError), max_pixels=settings.max_pixels)
    make_folder(folder)
    pipeline = SharpPipeline.load(settings)
    height = round(_WIDTH * source.camera.height / source.camera.width)
    sheet = Image.new("RGB", (2 * _WIDTH, len(names) * (height + _TEXT_HEIGHT)), "white")
    for row, name in enumerate(names):
        # Estimators are loaded one at a time, so that the memory of one is free before the next is loaded.
        estimate_depth = load_estimator(name, settings, checkpoint=checkpoints.get(name), pipeline=pipeline)
        estimate = estimate_depth(path, source)
        del estimate_depth
        target = folder / f"{path.stem}.{name}.npy"
        write_depth(target, estimate, estimator=name)
        # Said to be metric, since a guess from the values could take a map of a large scene for disparity.
        prediction = pipeline(path, PredictOptions(depth_format="metric"), depth=estimate.depth_m)
        prediction.write(folder / f"{path.stem}.{name}.ply")
        movie.write_preview(folder / f"{path.stem}.{name}.preview.webp", prediction.gaussians, prediction.camera)
        view = movie.still(prediction.gaussians, prediction.camera, width=_WIDTH)
        top = row * (height + _TEXT_HEIGHT)
        ImageDraw.Draw(sheet).text((6, top + 6), f"{name}: depth, and its splat", fill="black")
        for column, pixels in enumerate((depth_colors(estimate.depth_m), view)):
            tile = Image.fromarray(pixels).resize((_WIDTH, height))
            sheet.paste(tile, (column * _WIDTH, top + _TEXT_HEIGHT))
        print(f"{target}: the splat and its video are beside it")
    with open_atomically(folder / f"{path.stem}.depths.png") as file:
        sheet.save(file, "PNG")
    print(f"{folder / f'{path.stem}.depths.png'}: all of them side by side")
    return 0

"""`sharp-cog compare-depth`: what SHARP and other networks make of one photograph's depth, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from sharp_cog.cli.depth import in_colors, metric_npy, read_picture, source_of, write
from sharp_cog.cli.settings import settings_from
from sharp_cog.config.options import ESTIMATORS
from sharp_cog.errors import OptionError, OutputError
from sharp_cog.files.atomic import open_atomically
from sharp_cog.imaging import images
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.preview import movie

_WIDTH, _TEXT_HEIGHT = 480, 24


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; see `sharp_cog.cli.main` for the exit code."""
    movie.require_renderer()
    settings = settings_from(arguments)
    checkpoints = {"depth-pro": arguments.depth_pro, "depth-anything-v2-metric": arguments.depth_anything}
    names = arguments.estimators.split(",")
    for name in names:
        if name not in ("sharp", *ESTIMATORS):
            raise OptionError(f"{name!r} is no estimator: choose from sharp, {', '.join(ESTIMATORS)}")
    path, folder = Path(arguments.image), Path(arguments.output)
    image_bytes = read_picture(path)
    photograph = images.decode(image_bytes, max_pixels=settings.max_pixels)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    pipeline = SharpPipeline.load(settings)
    height = round(_WIDTH * photograph.camera.height / photograph.camera.width)
    sheet = Image.new("RGB", (2 * _WIDTH, len(names) * (height + _TEXT_HEIGHT)), "white")
    for row, name in enumerate(names):
        # One network at a time: a large one's memory is free before the next is loaded.
        estimator = source_of(name, settings, checkpoint=checkpoints.get(name), pipeline=pipeline)
        estimate = estimator(image_bytes, photograph)
        del estimator
        target = folder / f"{path.stem}.{name}.npy"
        write(target, estimate)
        prediction = pipeline(image_bytes, depth=metric_npy(estimate))
        prediction.write(folder / f"{path.stem}.{name}.ply")
        movie.write_preview(folder / f"{path.stem}.{name}.preview.webp", prediction.gaussians, prediction.camera)
        seen = Image.fromarray(movie.still(prediction.gaussians, prediction.camera, width=_WIDTH))
        top = row * (height + _TEXT_HEIGHT)
        ImageDraw.Draw(sheet).text((6, top + 6), f"{name}: depth, and its splat", fill="black")
        for column, picture in enumerate((in_colors(estimate), seen)):
            sheet.paste(picture.resize((_WIDTH, height)), (column * _WIDTH, top + _TEXT_HEIGHT))
        print(f"{target}: the splat and its film are beside it")
    with open_atomically(folder / f"{path.stem}.depths.png") as file:
        sheet.save(file, "PNG")
    print(f"{folder / f'{path.stem}.depths.png'}: all of them side by side")
    return 0

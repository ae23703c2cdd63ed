"""`sharp-cog render`: render a splat as an image or a video."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from sharp_cog.cli.splats import camera_of, read_splat, warn
from sharp_cog.cli.targets import Existing
from sharp_cog.errors import OptionError, SplatError
from sharp_cog.files.atomic import sweep
from sharp_cog.formats import Splat
from sharp_cog.geometry.camera import Camera
from sharp_cog.preview import movie
from sharp_cog.preview.render import Pixels, coverage
from sharp_cog.preview.view import View


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code, as `sharp_cog.cli.main` documents it."""
    source = Path(arguments.splat)
    output = Path(arguments.output) if arguments.output else source.with_suffix(".mp4")
    if output.suffix.lower() not in movie.SUFFIXES:
        raise OptionError(f"{output} has no suffix of {', '.join(movie.SUFFIXES)}: name it so that the format is clear")
    shot = movie.VideoOptions(
        path=arguments.path,
        duration_s=arguments.duration,
        fps=arguments.fps,
        width=arguments.width,
        camera_range=arguments.range,
        is_stereo=arguments.stereo,
    )
    depth_path = output.with_name(f"{output.stem}.depth{output.suffix}")
    written = [output, depth_path] if arguments.depth and output.suffix.lower() != ".png" else [output]
    existing = Existing(overwrite=arguments.overwrite, skip=arguments.skip_existing)
    if output not in existing.leaves(written, is_splat_format=False):
        return 0
    sweep(output.parent)
    splat = read_splat(source, axes=arguments.input_axes, drop_invalid=arguments.drop_invalid)
    camera = camera_of(source, splat)
    if output.suffix.lower() == ".png":
        image = movie.still(splat.gaussians, camera, width=shot.width)
        _require_content(image, splat, camera, arguments)
        movie.write_image(output, image)
        print(f"{output}: the photograph's own view")
        return 0
    writer = movie.MovieWriter(output, fps=shot.fps)
    depth_writer = movie.MovieWriter(depth_path, fps=shot.fps) if arguments.depth else None
    rendered = movie.frames(splat.gaussians, camera, shot)
    for image, depth in tqdm(rendered, total=shot.num_frames, unit="frame", disable=not sys.stderr.isatty()):
        if not writer.num_frames:
            _require_content(image, splat, camera, arguments)
        writer.add(image)
        if depth_writer is not None:
            depth_writer.add(depth)
    for video in filter(None, (writer, depth_writer)):
        video.close()
        print(f"{video.path}: {shot.num_frames} frames, {video.path.stat().st_size / 1e6:.1f} MB")
    return 0


def _require_content(image: Pixels, splat: Splat, camera: Camera, arguments: argparse.Namespace) -> None:
    """Refuse to write an image that shows nothing of the splat; only warn if the user has named its axes.

    Raises:
        SplatError: The image is black, and no Gaussian covers the photograph's view.
    """
    if image.any() or coverage(splat.gaussians, View.of_photograph(camera, width=image.shape[1])).any():
        return
    empty = f"none of the {len(splat.gaussians)} Gaussians is in the camera's view"
    if arguments.input_axes != "auto":
        warn(Path(arguments.splat), [f"{empty} with the axes {arguments.input_axes}: the image is black"])
        return
    raise SplatError(
        f"{empty}, so the image would be black: if the splat has other axes than were taken, name them with input_axes "
        "(opencv or opengl)"
    )

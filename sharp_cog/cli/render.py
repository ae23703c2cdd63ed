"""`sharp-cog render`: render a splat as an image or a video."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from sharp_cog import formats
from sharp_cog.cli.splats import camera_of
from sharp_cog.errors import OptionError
from sharp_cog.files.atomic import sweep
from sharp_cog.preview import movie


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
    sweep(output.parent)
    splat = formats.read(source, axes=arguments.input_axes)
    camera = camera_of(source, splat)
    if output.suffix.lower() == ".png":
        movie.write_image(output, movie.still(splat.gaussians, camera, width=shot.width))
        print(f"{output}: the photograph's own view")
        return 0
    writer = movie.MovieWriter(output, fps=shot.fps)
    depth_path = output.with_name(f"{output.stem}.depth{output.suffix}")
    depth_writer = movie.MovieWriter(depth_path, fps=shot.fps) if arguments.depth else None
    rendered = movie.frames(splat.gaussians, camera, shot)
    for image, depth in tqdm(rendered, total=shot.num_frames, unit="frame", disable=not sys.stderr.isatty()):
        writer.add(image)
        if depth_writer is not None:
            depth_writer.add(depth)
    for video in filter(None, (writer, depth_writer)):
        video.close()
        print(f"{video.path}: {shot.num_frames} frames, {video.path.stat().st_size / 1e6:.1f} MB")
    return 0

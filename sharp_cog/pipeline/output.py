"""Writing of a splat, in a splat format or as a video."""

from __future__ import annotations

from pathlib import Path

from sharp_cog import formats
from sharp_cog.config.options import OutputOptions
from sharp_cog.files.atomic import open_atomically
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.preview.movie import require_ffmpeg, write_mp4


def check(options: OutputOptions, *, viewer_dir: Path | None = None) -> None:
    """Check that everything the output format needs is installed, before any work is done for it.

    Raises:
        NotInstalledError: A package is missing; the message says how to install it.
    """
    if options.output_format == "mp4":
        require_ffmpeg()
    else:
        formats.check(options, viewer_dir=viewer_dir)


def write(
    path: Path, gaussians: Gaussians, camera: Camera | None, options: OutputOptions, *, viewer_dir: Path | None = None
) -> Path:
    """Write a splat or a video; `path` appears whole or not at all.

    Args and errors are those of `sharp_cog.formats.write`.
    """
    if options.output_format != "mp4":
        return formats.write(path, gaussians, camera, options, viewer_dir=viewer_dir)
    # The camera of a video moves around the photograph's: `OutputFormat.needs_camera` makes every caller provide one.
    assert camera is not None
    # The renderer expects OpenCV axes, as the network predicts them, so `auto` means these.
    scene, _ = formats.to_output_frame(gaussians, options, default_axes="opencv")
    with open_atomically(path) as file:
        write_mp4(file, scene, camera)
    return path

"""Formats of a splat: one registry, which every door offers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sharp_cog.atomic import open_atomically
from sharp_cog.camera import Camera
from sharp_cog.errors import OptionError
from sharp_cog.formats.ply import vertex_block, write_apple_ply, write_ply
from sharp_cog.gaussians import Gaussians

__all__ = ["FORMATS", "Format", "vertex_block", "write"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """A way to write a splat.

    Attributes:
        name: As users write it.
        suffix: Of a file's name, with the dot.
        description: What it is good for, in a line.
        write: Writes Gaussians, seen by the photograph's camera, to a binary file.
    """

    name: str
    suffix: str
    description: str
    write: Callable[[BinaryIO, Gaussians, Camera], None]


FORMATS = {
    format_.name: format_
    for format_ in (
        Format(
            name="ply",
            suffix=".ply",
            description="vertices alone, read by every viewer; focal length and size in comments",
            write=write_ply,
        ),
        Format(
            name="apple_ply",
            suffix=".ply",
            description="Apple's layout with its extra elements, for its own render command; some viewers refuse it",
            write=write_apple_ply,
        ),
    )
}
"""All formats by name; the names are `sharp_cog.options.OUTPUT_FORMATS`."""


def write(path: Path, gaussians: Gaussians, camera: Camera, output_format: str) -> Path:
    """Writes a splat; `path` appears whole or not at all.

    Args:
        path: Where to; its suffix is the caller's business.
        gaussians: N Gaussians on any device.
        camera: The photograph's camera.
        output_format: A key of `FORMATS`.

    Returns:
        The path.

    Raises:
        OptionError: There is no such format.
        PredictionError: A value is not finite.
        OutputError: The file cannot be written.
    """
    if output_format not in FORMATS:
        raise OptionError(f"output_format is {output_format!r}: choose one of {', '.join(FORMATS)}")
    with open_atomically(path) as file:
        FORMATS[output_format].write(file, gaussians, camera)
    return path

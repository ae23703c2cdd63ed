"""Splats that commands read, and what they report about them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from sharp_cog import formats
from sharp_cog.cli.settings import in_flags
from sharp_cog.formats import Splat
from sharp_cog.geometry.camera import DEFAULT_FOCAL_LENGTH_MM, Camera, focal_length_px_from_mm

_ASSUMED_WIDTH = 1200
"""Width of the image that a splat without a camera is assumed to come from, in pixels."""
_ASSUMED_HEIGHT = 800
"""Height of that image."""


def read_splat(path: Path, *, axes: str, drop_invalid: bool) -> Splat:
    """Read a splat, and print the notes of its reader on stderr; the arguments are those of `sharp_cog.formats.read`.

    Raises:
        SplatError: The file cannot be read, has another format, or is broken.
    """
    splat = formats.read(path, axes=axes, drop_invalid=drop_invalid)
    warn(path, splat.notes)
    return splat


def warn(path: Path, notes: Iterable[str]) -> None:
    """Print notes about a file on stderr, with flags in place of the names of options."""
    for note in notes:
        print(f"warning: {path}: {in_flags(note)}", file=sys.stderr)


def camera_of(path: Path, splat: Splat) -> Camera:
    """Return the splat's camera; if its file has none, say so on stderr and assume an ordinary one."""
    if splat.camera is not None:
        return splat.camera
    print(f"{path} does not name the camera that took its image: a 30 mm equivalent, 3:2, is assumed", file=sys.stderr)
    return Camera(
        width=_ASSUMED_WIDTH,
        height=_ASSUMED_HEIGHT,
        focal_length_px=focal_length_px_from_mm(DEFAULT_FOCAL_LENGTH_MM, width=_ASSUMED_WIDTH, height=_ASSUMED_HEIGHT),
        focal_length_source="default",
    )

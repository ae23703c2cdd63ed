"""The camera of a splat that a command has read."""

from __future__ import annotations

import sys
from pathlib import Path

from sharp_cog.formats import Splat
from sharp_cog.geometry.camera import DEFAULT_FOCAL_LENGTH_MM, Camera, focal_length_px_from_mm

_ASSUMED_SIZE = (1200, 800)


def camera_of(path: Path, splat: Splat) -> Camera:
    """The splat's camera; an ordinary one, and a note about it, where the file does not say."""
    if splat.camera is not None:
        return splat.camera
    width, height = _ASSUMED_SIZE
    focal_length_px = focal_length_px_from_mm(DEFAULT_FOCAL_LENGTH_MM, width=width, height=height)
    print(f"{path} does not say which camera it is seen by: a 30 mm equivalent, 3:2, is assumed", file=sys.stderr)
    return Camera(width=width, height=height, focal_length_px=focal_length_px, focal_length_source="default")

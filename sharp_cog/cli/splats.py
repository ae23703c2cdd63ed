"""Camera of a splat that a command has read."""

from __future__ import annotations

import sys
from pathlib import Path

from sharp_cog.formats import Splat
from sharp_cog.geometry.camera import DEFAULT_FOCAL_LENGTH_MM, Camera, focal_length_px_from_mm

_ASSUMED_WIDTH = 1200
"""Width of the image that a splat without a camera is assumed to come from, in pixels."""
_ASSUMED_HEIGHT = 800
"""Height of that image."""


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

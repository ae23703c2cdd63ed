"""How far a camera may go before what the photograph did not see shows as holes."""

from __future__ import annotations

import numpy as np

from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.preview.path import DEFAULT_RANGE, camera_path
from sharp_cog.preview.render import coverage
from sharp_cog.preview.view import View

REACHES = (DEFAULT_RANGE, 0.06, 0.045, 0.03, 0.02)
"""From the farthest to where a film would stand still."""
MAX_HOLES = 0.01
"""Share of a picture that may be open."""
_OPEN_BELOW = 0.5
_WIDTH, _NUM_POSES = 192, 4


def reach_without_holes(gaussians: Gaussians, camera: Camera, path: str, *, near_m: float, focus_m: float) -> float:
    """The largest of `REACHES` at which no more than `MAX_HOLES` of any view is open that the photograph filled.

    Args:
        gaussians: OpenCV axes, the photograph's camera at the origin.
        camera: The photograph's camera.
        path: As `sharp_cog.preview.path.camera_path`, which tells of the others too.
        near_m: Depth of the nearest things.
        focus_m: Depth of what stays in the centre.

    Returns:
        A reach, the last of `REACHES` where none is small enough.
    """
    photograph = View.of_photograph(camera, width=_WIDTH)
    was_open = float((coverage(gaussians, photograph) < _OPEN_BELOW).mean())

    def share_of_holes(reach: float) -> float:
        poses = camera_path(path, num_frames=_NUM_POSES, camera=camera, near_m=near_m, focus_m=focus_m, reach=reach)
        views = (coverage(gaussians, photograph.moved(pose)) for pose in poses)
        return max(float(np.mean(seen < _OPEN_BELOW)) for seen in views) - was_open

    for reach in REACHES[:-1]:
        if share_of_holes(reach) <= MAX_HOLES:
            return reach
    return REACHES[-1]

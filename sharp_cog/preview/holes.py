"""The range of a camera path: as large as possible while parts that the photograph hid do not show as holes."""

from __future__ import annotations

import numpy as np

from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.preview.path import DEFAULT_RANGE, camera_path
from sharp_cog.preview.render import coverage
from sharp_cog.preview.view import View

CAMERA_RANGES = (DEFAULT_RANGE, 0.06, 0.045, 0.03, 0.02)
"""Ranges that are tried, in this order; a smaller one than the last would hardly move the camera."""
MAX_HOLES = 0.01
"""Maximum share of an image's pixels that may be holes."""
_OPEN_BELOW = 0.5
"""Coverage below which a pixel is a hole."""
_WIDTH = 192
"""Width in pixels of the views that are searched for holes."""
# A `shake` swings twice in a loop: four poses would all be the photograph's own view.
_NUM_POSES = {"swipe": 4, "shake": 8, "rotate": 4, "rotate_forward": 4}
"""Number of poses along each path that are searched for holes; the path's extremes are among them."""


def largest_range_without_holes(
    gaussians: Gaussians, camera: Camera, path: str, *, near_m: float, focus_m: float
) -> float:
    """Return the largest of `CAMERA_RANGES` with at most `MAX_HOLES` in each view, besides the photograph's own holes.

    Args:
        gaussians: OpenCV axes, the photograph's camera at the origin.
        camera: Camera of the photograph.
        path: One of `sharp_cog.preview.path.PATHS`.
        near_m: Depth of the nearest things, in metres.
        focus_m: Depth in metres of the point that stays in the centre of the image.

    Returns:
        A range; the last of `CAMERA_RANGES` if all of them show holes.

    Raises:
        NotInstalledError: The extra `preview` is not installed.
    """
    photograph = View.of_photograph(camera, width=_WIDTH)
    # The splat may have holes even from the photograph's view, for example where Gaussians were dropped.
    share_before = float((coverage(gaussians, photograph) < _OPEN_BELOW).mean())

    def share_of_holes(camera_range: float) -> float:
        poses = camera_path(
            path, num_frames=_NUM_POSES[path], camera=camera, near_m=near_m, focus_m=focus_m, camera_range=camera_range
        )
        views = (coverage(gaussians, photograph.moved(pose)) for pose in poses)
        return max(float(np.mean(covered < _OPEN_BELOW)) for covered in views) - share_before

    # The last range is returned without a search, since there is none below it to choose.
    for camera_range in CAMERA_RANGES[:-1]:
        if share_of_holes(camera_range) <= MAX_HOLES:
            return camera_range
    return CAMERA_RANGES[-1]

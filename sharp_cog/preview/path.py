"""Camera paths around the photograph's own camera."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sharp_cog.geometry.camera import Camera

PATHS = ("swipe", "shake", "rotate", "rotate_forward")
DEFAULT_RANGE = 0.08
"""Movement of the nearest things in the image relative to the farthest, as a share of the image's diagonal.

Videos do not move the camera farther unless they are asked to; `sharp_cog.preview.holes` finds where less is better.
"""
_FORWARD_SHARE = 0.15
"""Distance that `rotate_forward` moves forward at the default range, as a share of the nearest depth."""

Poses = NDArray[np.float64]


def camera_path(
    kind: str, *, num_frames: int, camera: Camera, near_m: float, focus_m: float, camera_range: float
) -> Poses:
    """Return poses along a path, which is a closed loop except for `swipe`.

    Args:
        kind: `swipe` (left to right), `shake` (left and right, then up and down), `rotate` (a circle across the
            line of sight), `rotate_forward` (a circle that also moves forward).
        num_frames: Number of poses, at least 1.
        camera: Camera of the photograph.
        near_m: Depth of the nearest things, in metres.
        focus_m: Depth in metres of the point on the optical axis that stays in the centre of the image.
        camera_range: Extent of the movement, in the unit of `DEFAULT_RANGE`.

    Returns:
        (num_frames, 4, 4), world to camera, OpenCV axes.

    Raises:
        ValueError: The path is unknown.
    """
    if kind not in PATHS:
        raise ValueError(f"path is {kind!r}: choose one of {', '.join(PATHS)}")
    diagonal = math.hypot(camera.width, camera.height) / camera.focal_length_px
    # Relative to the farthest things, a step s moves a thing at depth z by focal_length_px * s / z pixels.
    side_m = camera_range * diagonal * near_m
    forward_m = _FORWARD_SHARE * (camera_range / DEFAULT_RANGE) * near_m
    # The last frame stops one step short of the first, so that a repeated video does not stutter.
    turn = 2 * math.pi * np.arange(num_frames) / num_frames
    still = np.zeros(num_frames)
    if kind == "swipe":
        positions = [np.linspace(-side_m, side_m, num_frames), still, still]
    elif kind == "shake":
        # One whole swing to the right and left, then one down and up.
        first_half = np.arange(num_frames) < num_frames / 2
        sway = side_m * np.sin(2 * turn)
        positions = [np.where(first_half, sway, 0), np.where(first_half, 0, sway), still]
    elif kind == "rotate":
        # A circle around the photograph's position, which it never passes.
        positions = [side_m * np.cos(turn), side_m * np.sin(turn), still]
    else:
        positions = [side_m * np.sin(turn), still, forward_m * (1 - np.cos(turn)) / 2]
    return np.stack([looking_at_focus(np.array(position), focus_m) for position in zip(*positions, strict=True)])


def looking_at_focus(position_m: NDArray[np.float64], focus_m: float) -> Poses:
    """Return the pose (4, 4), world to camera, of an upright camera at `position_m` (3,) looking at (0, 0, focus_m)."""
    forward = np.array([0.0, 0.0, focus_m]) - position_m
    forward /= np.linalg.norm(forward)
    # y points down, and down x forward = right.
    right = np.cross([0.0, 1.0, 0.0], forward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    pose = np.eye(4)
    pose[:3, :3] = rotation
    # x_camera = R (x - position).
    pose[:3, 3] = -rotation @ position_m
    return pose

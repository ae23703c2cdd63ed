"""INRIA's cameras.json: the cameras of a scene beside its .ply, which SuperSplat and the original viewers read."""

from __future__ import annotations

import json
from typing import BinaryIO

from sharp_cog.formats.scene import Frame
from sharp_cog.geometry.camera import Camera

_ROTATIONS = {
    "opencv": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
    "opengl": [[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0]],
}
"""Rotations from the camera's OpenCV axes into the axes of a splat, by rows."""


def write_cameras(file: BinaryIO, camera: Camera, frame: Frame) -> None:
    """Write the photograph's camera as the only one of a scene.

    Args:
        file: Binary file to write to.
        camera: Camera of the photograph.
        frame: Frame of the splat's coordinates.
    """
    entry = {
        "id": 0,
        "img_name": "photograph",
        "width": camera.width,
        "height": camera.height,
        "position": list(frame.camera_position),
        "rotation": _ROTATIONS[frame.axes],
        "fx": camera.focal_length_px,
        "fy": camera.focal_length_px,
    }
    file.write(json.dumps([entry]).encode("ascii"))

"""A splat as a file holds it: its Gaussians, their frame, and the camera of the photograph."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sharp_cog.errors import OptionError, SplatError
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.text import reason_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """The frame of a splat's coordinates.

    Attributes:
        axes: `opencv` (x right, y down, z forward) or `opengl` (x right, y up, z back), from the photograph's camera.
        camera_position: Position (x, y, z) of the photograph's camera in these axes; the origin unless the splat was
            centred.
        camera_rotation_wxyz: Unit quaternion that rotates the camera's OpenCV axes into the splat's, for splats of
            other tools, whose camera may look anywhere; None if it follows from `axes`.
    """

    axes: str = "opencv"
    camera_position: tuple[float, float, float] = (0.0, 0.0, 0.0)
    camera_rotation_wxyz: tuple[float, float, float, float] | None = None


PHOTOGRAPH_FRAME = Frame()
"""Frame of a prediction and of all computations: OpenCV axes, the photograph's camera at the origin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Splat:
    """A splat read from a file.

    Attributes:
        gaussians: N Gaussians on the CPU, in the file's own coordinates. Readers may return values that are not finite;
            `sharp_cog.formats.read` refuses or drops them.
        camera: Camera of the photograph, if the file holds it.
        frame: Frame of these coordinates, if the file or its format states it.
        notes: Sentences, without full stops, about what the reader assumed, and what of the file it left out.
    """

    gaussians: Gaussians
    camera: Camera | None
    frame: Frame | None = None
    notes: tuple[str, ...] = ()


def camera_from_fields(fields: object, suffix: str) -> Camera | None:
    """Read a camera from the metadata of a file, as sharp_cog and other programs store it.

    Args:
        fields: Parsed JSON: `camera_fields`, or the block of `sharp_cog.formats.sog`; anything else is no camera.
        suffix: Suffix of the file, for messages.

    Raises:
        SplatError: The camera cannot be parsed, or is impossible.
    """
    if not isinstance(fields, dict):
        return None
    lens = fields.get("intrinsics")
    try:
        if isinstance(lens, dict):
            size, focal = (lens["width"], lens["height"]), lens["fx"]
        elif "focal_length_px" in fields:
            size, focal = fields["image_size"], fields["focal_length_px"]
        else:
            return None
        width, height = size
        return Camera(width=int(width), height=int(height), focal_length_px=float(focal))
    except (KeyError, TypeError, ValueError, OverflowError, OptionError) as error:
        raise SplatError(f"the camera in the {suffix} cannot be read: {reason_of(error)}") from error


def pose_from_fields(position: object, rotation_xyzw: object, suffix: str) -> Frame:
    """Read the pose of a camera with OpenCV axes from the metadata of a file.

    Args:
        position: Three numbers of parsed JSON.
        rotation_xyzw: Quaternion of four numbers, of any length.
        suffix: Suffix of the file, for messages.

    Raises:
        SplatError: The pose cannot be parsed, or is not finite.
    """
    try:
        x, y, z = (float(number) for number in position)  # type: ignore[attr-defined]
        *vector, w = (float(number) for number in rotation_xyzw)  # type: ignore[attr-defined]
        # The largest component comes first, so that no square over- or underflows.
        largest = max(abs(number) for number in (w, *vector))
        scaled = [number / largest for number in (w, *vector)]
        length = math.hypot(*scaled)
        first, second, third, fourth = (number / length for number in scaled)
    except (TypeError, ValueError, OverflowError, ZeroDivisionError) as error:
        raise SplatError(f"the camera's pose in the {suffix} cannot be read: {reason_of(error)}") from error
    if not all(math.isfinite(number) for number in (x, y, z, first, second, third, fourth)):
        raise SplatError(f"the camera's pose in the {suffix} is not finite: it is broken")
    return Frame(camera_position=(x, y, z), camera_rotation_wxyz=(first, second, third, fourth))


def camera_fields(camera: Camera) -> dict[str, Any]:
    """Return a camera as formats with free metadata store it."""
    return {"focal_length_px": float(camera.focal_length_px), "image_size": [camera.width, camera.height]}

"""The photograph's camera: a pinhole with its principal point in the centre of the image.

Frame: OpenCV axes (x right, y down, z forward) in metres; the camera stands at the origin and looks along +z.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from sharp_cog.errors import OptionError

FocalLengthSource = Literal["caller", "exif_35mm", "exif", "intrinsics", "depth_file", "estimated", "default"]

FULL_FRAME_DIAGONAL_MM = math.hypot(36.0, 24.0)
"""Diagonal of a 36 x 24 mm frame of 35 mm film."""

DEFAULT_FOCAL_LENGTH_MM = 30.0
"""35 mm-equivalent focal length that SHARP assumes for an image without EXIF."""


def focal_length_px_from_mm(focal_length_mm: float, *, width: int, height: int) -> float:
    """Convert a 35 mm-equivalent focal length to pixels, by the diagonal of the 36 x 24 mm frame.

    Args:
        focal_length_mm: 35 mm-equivalent focal length in millimetres.
        width: Width of the image in pixels, after EXIF rotation.
        height: Height of the image in pixels, after EXIF rotation.
    """
    return focal_length_mm * math.hypot(width, height) / FULL_FRAME_DIAGONAL_MM


def focal_length_px_from_fov(fov_degrees: float, *, width: int) -> float:
    """Convert a horizontal field of view to a focal length in pixels.

    Args:
        fov_degrees: Angle between the left and the right edge of the image in degrees, between 0 and 180.
        width: Width of the image in pixels, after EXIF rotation.
    """
    return width / 2 / math.tan(math.radians(fov_degrees) / 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Camera:
    """Pinhole camera of a photograph.

    Attributes:
        width: Width of the image in pixels, after EXIF rotation.
        height: Height of the image in pixels, after EXIF rotation.
        focal_length_px: Focal length in pixels, the same in x and y.
        focal_length_source: Source of the focal length.
        focal_length_reason: Phrase that says how a focal length was concluded; empty for one that was given or assumed.

    Raises:
        OptionError: A size is not positive or the focal length is not a positive finite number.
    """

    width: int
    height: int
    focal_length_px: float
    focal_length_source: FocalLengthSource = "caller"
    focal_length_reason: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise OptionError(f"camera size is {self.width}x{self.height}: give a width and a height of at least 1")
        if not (math.isfinite(self.focal_length_px) and self.focal_length_px > 0):
            raise OptionError(f"focal length is {self.focal_length_px} px: give a positive number of pixels")

    @property
    def disparity_factor(self) -> float:
        """Focal length over the width of the image; the network divides it by disparity to get metres."""
        return self.focal_length_px / self.width

    @property
    def focal_length_mm_equivalent(self) -> float:
        """35 mm-equivalent focal length in millimetres."""
        return self.focal_length_px * FULL_FRAME_DIAGONAL_MM / math.hypot(self.width, self.height)

    @property
    def vertical_fov_degrees(self) -> float:
        """Vertical field of view in degrees."""
        return math.degrees(2 * math.atan2(self.height / 2, self.focal_length_px))

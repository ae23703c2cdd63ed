"""A view of a splat: the pose and the intrinsics of a camera."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sharp_cog.geometry.camera import Camera


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """A pinhole view with the principal point in the centre, in the splat's OpenCV axes.

    Attributes:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        focal_length_px: Focal length in pixels of this image.
        world_to_camera: (4, 4) float64, maps points of the splat to the camera's frame (x right, y down, z forward).

    Raises:
        ValueError: The matrix has another shape.
    """

    width: int
    height: int
    focal_length_px: float
    world_to_camera: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))

    def __post_init__(self) -> None:
        if self.world_to_camera.shape != (4, 4):
            raise ValueError(f"world_to_camera has shape {self.world_to_camera.shape}, expected (4, 4)")

    @property
    def camera_position(self) -> NDArray[np.float64]:
        """Position (3,) of the camera in the splat's frame."""
        position: NDArray[np.float64] = -self.world_to_camera[:3, :3].T @ self.world_to_camera[:3, 3]
        return position

    @classmethod
    def of_photograph(cls, camera: Camera, *, width: int) -> View:
        """Return the view of the photograph's camera, `width` pixels wide; both sides are even, for video codecs."""
        even_width = max(2, width - width % 2)
        height = max(2, round(camera.height * even_width / camera.width / 2) * 2)
        # The scale is that of the width: rounding the height cuts off or adds a row, without stretching.
        return cls(width=even_width, height=height, focal_length_px=camera.focal_length_px * even_width / camera.width)

    def moved(self, world_to_camera: NDArray[np.float64]) -> View:
        """Return the same view from another pose."""
        return replace(self, world_to_camera=world_to_camera)

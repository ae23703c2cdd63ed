"""A splat as a file holds it: its Gaussians, their frame, and the camera of the photograph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sharp_cog.errors import SplatError
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """The frame of a splat's coordinates.

    Attributes:
        axes: `opencv` (x right, y down, z forward) or `opengl` (x right, y up, z back), from the photograph's camera.
        camera_position: Position (x, y, z) of the photograph's camera in these axes; the origin unless the splat was
            centred.
    """

    axes: str = "opencv"
    camera_position: tuple[float, float, float] = (0.0, 0.0, 0.0)


PHOTOGRAPH_FRAME = Frame()
"""Frame of a prediction and of all computations: OpenCV axes, the photograph's camera at the origin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Splat:
    """A splat read from a file.

    Attributes:
        gaussians: N Gaussians on the CPU, in the file's own coordinates.
        camera: Camera of the photograph, if the file holds it.
        frame: Frame of these coordinates, if the file or its format states it.

    Raises:
        SplatError: A value is not finite.
    """

    gaussians: Gaussians
    camera: Camera | None
    frame: Frame | None = None

    def __post_init__(self) -> None:
        # One check for all readers: files may state any float, and the exponential of a finite logarithm may overflow.
        for name, values in self.gaussians.tensors().items():
            num_bad = int((~values.isfinite()).sum())
            if num_bad:
                raise SplatError(f"the splat has {num_bad} values of {name} that are not finite: it is broken")


def camera_fields(camera: Camera) -> dict[str, Any]:
    """Return a camera as formats with free metadata store it."""
    return {"focal_length_px": float(camera.focal_length_px), "image_size": [camera.width, camera.height]}

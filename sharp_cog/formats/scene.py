"""What a file says about a splat besides its Gaussians: how its axes lie, where the photograph's camera stands."""

from __future__ import annotations

from dataclasses import dataclass

from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """The frame that a splat's coordinates are in.

    Attributes:
        axes: `opencv` (x right, y down, z ahead) or `opengl` (x right, y up, z back), seen by the photograph's camera.
        camera_position: Of the photograph's camera, (x, y, z) in these axes; the origin unless the splat was centred.
    """

    axes: str = "opencv"
    camera_position: tuple[float, float, float] = (0.0, 0.0, 0.0)


PHOTOGRAPH_FRAME = Frame()
"""In which a prediction comes, and everything is reckoned: OpenCV axes, the photograph's camera at the origin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Splat:
    """A splat read from a file.

    Attributes:
        gaussians: N Gaussians on the CPU, in the file's own coordinates.
        camera: The photograph's camera, where the file tells.
        frame: What these coordinates are, where the file or its format tells.
    """

    gaussians: Gaussians
    camera: Camera | None
    frame: Frame | None = None

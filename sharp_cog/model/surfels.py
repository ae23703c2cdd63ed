"""Surfels: flat Gaussians that lie on a surface, each as large as its cell of the image. They have no weights."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.imaging.color import srgb_to_linear

SPREAD = 0.86
"""Standard deviation of a Gaussian, in cells, at which neighbours cover a surface and blur it little.

The optical depth of a surface is 2 pi SPREAD^2 OPACITY = 4.6, so that 1 % of the light from behind passes through.
"""
_OPACITY = 0.98
_FLATNESS = 0.05
"""Thickness of a Gaussian, in cells."""
_MAX_SLOPE = 0.12
"""Largest change of depth within a cell, as a share of the depth: steeper surfaces would become long streaks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """Cells of N places on surfaces, of one size in the image.

    A plane has a disparity that is linear in the image, so the slopes of disparity give the tangents of the surface.

    Attributes:
        x: (N,), centre of the cell in NDC; the image's left edge is at -1 and its right edge at 1.
        y: (N,), centre of the cell in NDC; the image's top edge is at -1 and its bottom edge at 1.
        disparity: (N,), 1 / depth in metres at the centre.
        slope_x: (N,), change of disparity for each unit of x.
        slope_y: (N,), change of disparity for each unit of y.
        colors_srgb: (N, 3), in [0, 1].
        cell_size: Width and height of a cell in NDC.
        spread: (N,), standard deviation in cells.
    """

    x: Tensor
    y: Tensor
    disparity: Tensor
    slope_x: Tensor
    slope_y: Tensor
    colors_srgb: Tensor
    cell_size: float
    spread: Tensor


def gaussians_on(sheets: list[Sheet]) -> NDCGaussians:
    """Place a flat Gaussian on each cell, tangent to its surface: neighbours meet from wherever one looks.

    In the view of the photograph, each is a round blob with the standard deviation `spread`.
    """
    parts = [_place(sheet) for sheet in sheets]
    names = [item.name for item in fields(NDCGaussians)]
    return NDCGaussians(**{name: torch.cat([getattr(part, name) for part in parts], dim=1) for name in names})


def _place(sheet: Sheet) -> NDCGaussians:
    x, y, z = sheet.x, sheet.y, 1.0 / sheet.disparity
    # P = z (x, y, 1), and dz/dx = -z^2 d(1/z)/dx. `across` and `down` are the steps of P from one cell to the next.
    steepest = _MAX_SLOPE / sheet.cell_size
    z_x, z_y = (-(z * slope).clamp(-steepest, steepest) * z for slope in (sheet.slope_x, sheet.slope_y))
    cell = sheet.cell_size
    across = ((z_x * x + z) * cell, z_x * y * cell, z_x * cell)
    down = (z_y * x * cell, (z_y * y + z) * cell, z_y * cell)
    # The principal axes of the covariance across across^T + down down^T: a rotation in the plane of both.
    xx, xy, yy = _dot(across, across), _dot(across, down), _dot(down, down)
    angle = 0.5 * torch.atan2(2.0 * xy, xx - yy)
    cosine, sine = angle.cos(), angle.sin()
    long = tuple(cosine * first + sine * second for first, second in zip(across, down, strict=True))
    length = _dot(long, long).sqrt()
    # The squares of both lengths add up to the trace.
    width = (xx + yy - length * length).clamp(min=0).sqrt()
    normal = _unit(_cross(across, down))
    return NDCGaussians(
        means=torch.stack([z * x, z * y, z], dim=-1).unsqueeze(0),
        scales=torch.stack([sheet.spread * length, sheet.spread * width, _FLATNESS * cell * z], dim=-1).unsqueeze(0),
        quaternions_wxyz=_rotation(_unit(long), normal).unsqueeze(0),
        colors_linear=srgb_to_linear(sheet.colors_srgb.clamp(0.0, 1.0)).unsqueeze(0),
        opacities=torch.full_like(z, _OPACITY).unsqueeze(0),
    )


_Vector = tuple[Tensor, ...]
"""The three components of N vectors, each (N,)."""


def _dot(a: _Vector, b: _Vector) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _cross(a: _Vector, b: _Vector) -> _Vector:
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def _unit(a: _Vector) -> _Vector:
    factor = _dot(a, a).rsqrt()
    return a[0] * factor, a[1] * factor, a[2] * factor


def _rotation(first: _Vector, normal: _Vector) -> Tensor:
    """Return quaternions (N, 4), not unit, that turn the x axis to plus or minus `first`, and z to the normal.

    The shortest turn from the z axis to the normal comes after a turn about the z axis.
    """
    # A Gaussian does not change if an axis is reversed: the normal points away from the camera, and the first axis to
    # the right, so that neither turn comes near 180 degrees, where its quaternion vanishes.
    flip = torch.where(normal[2] < 0, -1.0, 1.0)
    n_x, n_y, n_z = (component * flip for component in normal)
    share = 1.0 / (1.0 + n_z)
    cosine = first[0] * (1.0 - n_x * n_x * share) - first[1] * n_x * n_y * share - first[2] * n_x
    sine = -first[0] * n_x * n_y * share + first[1] * (1.0 - n_y * n_y * share) - first[2] * n_y
    sine = torch.where(cosine < 0, -sine, sine)
    # (1 + cos, sin) has the direction of half the angle: a unit quaternion needs no trigonometric function.
    about_w, about_z = 1.0 + cosine.abs(), sine
    tilt_w, tilt_x, tilt_y = 1.0 + n_z, -n_y, n_x
    return torch.stack(
        [tilt_w * about_w, tilt_x * about_w + tilt_y * about_z, tilt_y * about_w - tilt_x * about_z, tilt_w * about_z],
        dim=-1,
    )

"""Lift: an image on the surface of an external depth map, with the surfaces that it hides. It has no weights."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.model.external_depth import DepthUse, prepare
from sharp_cog.model.hidden import LEAST_SHARE, Visible, behind, blocks, grow, largest, margin, mean, shrink
from sharp_cog.model.surfels import SPREAD, Sheet, gaussians_on

_CELL_PX = 2
"""Width and height in pixels of the cell of a Gaussian."""
_MOVE_SHARE = 0.25
"""Distance that the camera is expected to move, as a share of the nearest depth: twice that of the videos."""
_NEAR_SHARE = 0.95
"""Share of the image that is farther away than its nearest depth."""
_LEAST_GAP = 1.5
"""Width in cells of the gap that opens at the smallest step that counts as an edge."""
_STEEPER = 3.0
"""Factor by which the step at an edge exceeds the steps beside it: a floor has equal steps, however steep it is."""
_MIXED = 0.03
"""Relative difference of disparity at which a pixel hardly counts for the colour of its cell."""
_RIM_SPREAD = 0.4
"""Standard deviation, in cells, of the Gaussians at the rim of a foreground, which would cover the background else."""


def lift(image: Tensor, depth_m: Tensor, use: DepthUse, *, disparity_factor: float, aspect: float) -> NDCGaussians:
    """Lift each cell of 2 x 2 pixels to its depth, and continue the background behind depth edges.

    Args:
        image: (1, 3, S, S), RGB in [0, 1].
        depth_m: (1, 1, S, S), metres, known everywhere.
        use: Mode, scale and offset of the depth map. There is no monodepth that the map could be fitted to. In the mode
            `fixed`, with a factor above 1, a copy of the visible surface at a multiple of its depth replaces all hidden
            surfaces.
        disparity_factor: Focal length over width of the photograph, both in pixels.
        aspect: Width over height of the photograph.

    Returns:
        N Gaussians: first those of the visible surface, one for each cell, row by row, then the hidden ones.

    Raises:
        DepthError: The use asks for a fit.
    """
    pixels = 1.0 / prepare(depth_m, None, use)[0, 0]
    num = pixels.shape[-1] // _CELL_PX
    near_m = 1.0 / float(torch.quantile(pixels[::16, ::16].flatten(), _NEAR_SHARE))
    shift_x = num * disparity_factor * _MOVE_SHARE * near_m
    least_step = _LEAST_GAP / shift_x
    disparity = _sharpen(_at_cells(pixels, least_step), least_step)
    cell_size = 2.0 / num
    slope_x, across = _slopes(disparity, least_step)
    slope_y, down = (values.T for values in _slopes(disparity.T, least_step))
    visible = Visible(
        colors_srgb=_colors(image[0], pixels, disparity),
        disparity=disparity,
        slope_x=slope_x / cell_size,
        slope_y=slope_y / cell_size,
        is_edge=across | down,
        least_step=least_step,
        shift_x=shift_x,
        shift_y=shift_x * aspect,
    )
    if use.mode == "fixed" and use.back_surface_factor > 1:
        front = _front(visible, visible.colors_srgb)
        factor = use.back_surface_factor
        back = replace(
            front,
            disparity=front.disparity / factor,
            slope_x=front.slope_x / factor,
            slope_y=front.slope_y / factor,
        )
        return gaussians_on([front, back])
    hidden, colors, has_color = behind(visible)
    # Cells of the background beside an edge are mixed with the colour of the foreground, and would stay behind as its
    # ghost when the camera moves.
    step = (LEAST_SHARE * disparity).clamp(min=least_step)
    is_mixed = grow(visible.is_edge) & (grow(disparity) - disparity > step) & has_color
    front = _front(visible, torch.where(is_mixed, colors, visible.colors_srgb))
    return gaussians_on([front, *hidden, margin(visible)])


def _at_cells(pixels: Tensor, least_step: float) -> Tensor:
    """Return the disparity of cells: the mean of their pixels, or the nearest one if an edge crosses the cell."""
    near, far = largest(pixels, _CELL_PX), -largest(-pixels, _CELL_PX)
    return torch.where(near - far > (LEAST_SHARE * far).clamp(min=least_step), near, mean(pixels, _CELL_PX))


def _sharpen(disparity: Tensor, least_step: float) -> Tensor:
    """Move cells between two surfaces, which resizing has left in the air, to the surface that is closer."""
    near, far = grow(disparity), shrink(disparity)
    # On a slope, however steep, the range doubles with the radius. At an edge it does not.
    is_step = (near - far > (LEAST_SHARE * far).clamp(min=least_step)) & (grow(near) - shrink(far) < 1.5 * (near - far))
    closer = torch.where(disparity > 0.5 * (near + far), near, far)
    return torch.where(is_step, closer, disparity)


def _slopes(disparity: Tensor, least_step: float) -> tuple[Tensor, Tensor]:
    """Return the change of disparity from cell to cell along rows, and whether an edge separates a cell from another.

    Disparity is linear on a plane, so its steps are equal there. An edge is a step that the next ones do not explain.
    """
    step = disparity.diff(dim=-1)
    sign = step.sign()
    before = (F.pad(step[:, :-1], (1, 0)) * sign).clamp(min=0)
    after = (F.pad(step[:, 1:], (0, 1)) * sign).clamp(min=0)
    far = torch.minimum(disparity[:, :-1], disparity[:, 1:])
    size = step.abs()
    is_edge = (size > (LEAST_SHARE * far).clamp(min=least_step)) & (size > _STEEPER * torch.minimum(before, after))
    is_slope = (~is_edge).to(step.dtype)
    smooth = step * is_slope
    num = F.pad(is_slope, (1, 0)) + F.pad(is_slope, (0, 1))
    slope = (F.pad(smooth, (1, 0)) + F.pad(smooth, (0, 1))) / num.clamp(min=1)
    return slope, F.pad(is_edge, (1, 0)) | F.pad(is_edge, (0, 1))


def _colors(image: Tensor, pixels: Tensor, disparity: Tensor) -> Tensor:
    """Return the mean colour (3, h, h) of the pixels of each cell that lie on its surface."""
    total = torch.zeros_like(disparity)
    colors = image.new_zeros(3, *disparity.shape)
    for here, color in zip(blocks(pixels, _CELL_PX), blocks(image, _CELL_PX), strict=True):
        # A little more than 0, in case that no pixel lies there.
        weight = torch.exp(-(((here / disparity - 1.0) / _MIXED) ** 2)).add_(1e-4)
        total += weight
        colors.addcmul_(color, weight)
    return colors / total


def _front(visible: Visible, colors_srgb: Tensor) -> Sheet:
    """Return the visible surface."""
    disparity = visible.disparity
    num = disparity.shape[-1]
    centres = (torch.arange(num, device=disparity.device, dtype=disparity.dtype) + 0.5) * (2.0 / num) - 1.0
    step = (LEAST_SHARE * disparity).clamp(min=visible.least_step)
    is_rim = grow(visible.is_edge) & (disparity - shrink(disparity) > step)
    return Sheet(
        x=centres.repeat(num),
        y=centres.repeat_interleave(num),
        disparity=disparity.flatten(),
        slope_x=visible.slope_x.flatten(),
        slope_y=visible.slope_y.flatten(),
        colors_srgb=colors_srgb.flatten(1).T,
        cell_size=2.0 / num,
        spread=torch.where(is_rim, _RIM_SPREAD, SPREAD).flatten(),
    )

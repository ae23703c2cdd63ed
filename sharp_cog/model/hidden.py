"""Surfaces that a photograph hides: the background continued behind depth edges, and a margin around the image.

The background is continued in two ways. Close to an edge, the surface next to it grows behind the foreground cell by
cell, so that each of several layers hides the next one (layered depth inpainting: Shade et al., "Layered Depth Images",
1998; Shih et al., "3D Photography using Context-aware Layered Depth Inpainting", 2020). Farther from it, the farthest
surface in reach fills the rest by push and pull through a pyramid of weighted means (Gortler et al., "The Lumigraph",
1996). Both continue colours, and the planes of disparity instead of its values, so that a floor remains a floor.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from sharp_cog.model.external_depth import MAX_DEPTH_M
from sharp_cog.model.surfels import SPREAD, Sheet

LEAST_SHARE = 0.02
"""Smallest step of disparity at an edge, as a share of the disparity on its far side."""
_STRIDE = 2
"""Cells of the visible surface to a cell of the hidden one, in each direction: it has no detail to show."""
_MARGIN_STRIDE = 4
"""The same for the margin around the image."""
_GROWN = 8
"""Number of hidden cells that the surface next to an edge grows."""
_NEAR = 6
"""Distance in hidden cells from an edge within which the background is a source of the far fill."""
_MAX_REACH_SHARE = 0.25
"""Farthest that a foreground hides its background, as a share of the image."""
_MAX_MARGIN_SHARE = 1 / 3
"""Widest margin, as a share of the image."""
_BEHIND = 0.995
"""Factor on the disparity of a hidden surface where it continues below the visible one, which is to stay on top."""
_SAME_SURFACE = 0.05
"""Relative difference of disparity up to which neighbours count as one surface."""
_BLENDED = 12.0
"""Cells of the margin within which the colours of the border blend into those of the surroundings."""
_FOREGROUND_WEIGHT = 0.1
"""Weight of the foreground at the border of the image, which seldom continues beyond it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Visible:
    """The visible surface on a grid of h x h cells, as a plane of disparity in each cell.

    Attributes:
        colors_srgb: (3, h, h).
        disparity: (h, h), 1 / metres.
        slope_x: (h, h), change of disparity for each unit of x in NDC, from the cells of the same surface.
        slope_y: (h, h), the same for y.
        is_edge: (h, h), whether a depth edge separates the cell from one of its four neighbours.
        least_step: Smallest step of disparity at an edge.
        shift_x: Cells by which disparity 1 moves to the side when the camera moves as far as it is expected to.
        shift_y: The same for up and down.
    """

    colors_srgb: Tensor
    disparity: Tensor
    slope_x: Tensor
    slope_y: Tensor
    is_edge: Tensor
    least_step: float
    shift_x: float
    shift_y: float


def grow(values: Tensor, radius: int = 1) -> Tensor:
    """Return the maximum of each square of (2 radius + 1)^2 cells of a grid (..., h, w)."""
    # By slices: ten times as fast on a CPU as torch's max_pool2d.
    for _ in range(radius):
        for dim in (-2, -1):
            length = values.shape[dim] - 1
            grown = values.clone()
            for here, there in ((0, 1), (1, 0)):
                target = grown.narrow(dim, here, length)
                torch.maximum(target, values.narrow(dim, there, length), out=target)
            values = grown
    return values


def shrink(values: Tensor, radius: int = 1) -> Tensor:
    """Return the minimum of each square of (2 radius + 1)^2 cells of a grid (..., h, w)."""
    return -grow(-values, radius)


def blocks(values: Tensor, size: int) -> list[Tensor]:
    """Return the cells of each block of size x size cells of a grid (..., h, w), as grids of blocks."""
    return [values[..., row::size, column::size] for row in range(size) for column in range(size)]


def largest(values: Tensor, size: int) -> Tensor:
    """Return the maximum of each block."""
    return reduce(torch.maximum, blocks(values, size))


def mean(values: Tensor, size: int) -> Tensor:
    """Return the mean of each block."""
    return reduce(torch.add, blocks(values, size)) / size**2


def push_pull(values: Tensor, weights: Tensor) -> Tensor:
    """Fill a grid (C, h, w) where its weights (h, w), in [0, 1], are below 1, from means of ever larger blocks."""
    height, width = weights.shape
    if min(height, width) <= 1:
        return values
    padding = (0, width % 2, 0, height % 2)
    total = F.pad(weights, padding)
    low_weights = mean(total, 2)
    low_values = mean(F.pad(values * weights, padding), 2) / low_weights.clamp(min=1e-12)
    # Four cells of weight 1 / 4 make one that is known.
    low = push_pull(low_values, (4.0 * low_weights).clamp(max=1.0))
    filled = F.interpolate(low.unsqueeze(0), scale_factor=2, mode="bilinear", align_corners=False)[0]
    return torch.lerp(filled[:, :height, :width], values, weights)


class _Grid:
    """A grid of coarser cells, with the planes of the visible surface as six channels.

    The channels are three of colour, the slopes in x and y, and the disparity of the plane at the centre of the image.
    """

    def __init__(self, visible: Visible, stride: int, margin: int = 0) -> None:
        self.stride, self.margin = stride, margin
        self.num = visible.disparity.shape[-1] // stride
        self.cell_size = 2.0 / self.num
        self.size = self.num + 2 * margin
        places = torch.arange(self.size, device=visible.disparity.device, dtype=visible.disparity.dtype)
        centres = (places - margin + 0.5) * self.cell_size - 1.0
        self.x, self.y = centres.view(1, -1).expand(self.size, -1), centres.view(-1, 1).expand(-1, self.size)
        cells = torch.cat(
            [visible.colors_srgb, torch.stack([visible.slope_x, visible.slope_y, visible.disparity])], dim=0
        )
        self.planes = F.pad(mean(cells, stride), (margin,) * 4)
        self.planes[5] -= self.planes[3] * self.x + self.planes[4] * self.y

    def disparity(self, planes: Tensor) -> Tensor:
        """Return the disparity (h, w) of planes (6, h, w)."""
        return planes[5] + planes[3] * self.x + planes[4] * self.y

    def sheet(self, planes: Tensor, disparity: Tensor, chosen: Tensor) -> Sheet:
        """Return the chosen cells (h, w)."""
        return Sheet(
            x=self.x[chosen],
            y=self.y[chosen],
            disparity=disparity[chosen].clamp(min=1.0 / MAX_DEPTH_M),
            slope_x=planes[3][chosen],
            slope_y=planes[4][chosen],
            colors_srgb=planes[:3, chosen].T,
            cell_size=self.cell_size,
            spread=torch.full_like(disparity[chosen], SPREAD),
        )


def behind(visible: Visible) -> tuple[list[Sheet], Tensor, Tensor]:
    """Return the hidden surfaces behind depth edges.

    Returns:
        Sheets; colours (3, h, h) of the hidden surface; and a mask (h, h) of the cells that have one.
    """
    grid = _Grid(visible, _STRIDE)
    near, far = largest(visible.disparity, _STRIDE), -largest(-visible.disparity, _STRIDE)
    step = (LEAST_SHARE * near).clamp(min=visible.least_step)
    is_edge = largest(visible.is_edge, _STRIDE)
    grown, is_grown = _grow_behind(visible, grid, near, far, step, is_edge)
    sheets = [grid.sheet(grown, torch.minimum(_BEHIND * grid.disparity(grown), near - 0.3 * step), is_grown)]

    far_source, source_at = _farthest_in_reach(visible, far)
    is_foreground = near - far_source > step
    rim = torch.zeros_like(is_foreground).view(-1)
    rim[source_at[is_foreground]] = True
    # The cells next to an edge have colours of both sides.
    is_source = ~grow(is_foreground) & grow(rim.view_as(is_foreground), _NEAR)
    is_filled = torch.zeros_like(is_foreground)
    filled = grown
    if bool(is_source.any()):
        filled = push_pull(grid.planes, is_source.to(grid.planes.dtype))
        # A little farther than the foreground at its edge, so that no gap opens there. Where the foreground goes on
        # beyond the reach, nothing comes below it.
        is_filled = is_foreground | (grow(is_foreground, 2) & grow(is_edge, 2))
        disparity = torch.maximum(grid.disparity(filled), 0.5 * far.view(-1)[source_at])
        disparity = torch.minimum(disparity, near - 0.5 * step)
        below = 0.99 * (near + far) / 2
        # There the visible surface is the background, and the hidden one continues just below it.
        disparity = torch.where(is_foreground, disparity, below)
        sheets.append(grid.sheet(filled, disparity, is_filled))
    colors = torch.where(is_grown, grown[:3], filled[:3])
    return sheets, _enlarged(colors), _enlarged(is_grown | is_filled)


def _enlarged(cells: Tensor) -> Tensor:
    """Return a grid of hidden cells as one of visible cells."""
    return cells.repeat_interleave(_STRIDE, dim=-2).repeat_interleave(_STRIDE, dim=-1)


def _farthest_in_reach(visible: Visible, far: Tensor) -> tuple[Tensor, Tensor]:
    """Find the background that each cell may hide or reveal when the camera moves.

    Relative to a background of disparity f, a surface of disparity d moves by shift (d - f) cells. So it hides what is
    up to that many cells away from it: the least f + distance / shift, below d, is the farthest thing that it hides.

    Returns:
        That minimum, and the index of the cell where it comes from, both (h, h).
    """
    least = far.clone()
    source_at = torch.arange(far.numel(), device=far.device).view_as(far)
    cost = _STRIDE / max(visible.shift_x, visible.shift_y)
    # A cone by steps of 1, 2, 4 ... cells, whose sums are all distances.
    distance = 1
    while distance <= _MAX_REACH_SHARE * far.shape[-1]:
        for dim in (-2, -1):
            length = far.shape[dim] - distance
            reached, reached_at = least.clone(), source_at.clone()
            for here, there in ((0, distance), (distance, 0)):
                target, target_at = reached.narrow(dim, here, length), reached_at.narrow(dim, here, length)
                candidate = least.narrow(dim, there, length) + distance * cost
                is_less = candidate < target
                target.copy_(torch.where(is_less, candidate, target))
                target_at.copy_(torch.where(is_less, source_at.narrow(dim, there, length), target_at))
            least, source_at = reached, reached_at
        distance *= 2
    return least, source_at


def _grow_behind(
    visible: Visible, grid: _Grid, near: Tensor, far: Tensor, step: Tensor, is_edge: Tensor
) -> tuple[Tensor, Tensor]:
    """Grow the surface next to each edge behind the foreground, and below its own cells that are mixed with it.

    Returns:
        Planes (6, h, h), and whether a cell has one, (h, h).
    """

    # A frame of one cell spares the tests for the border.
    def framed(cells: Tensor) -> Tensor:
        return F.pad(cells, (1, 1, 1, 1)).reshape(*cells.shape[:-2], -1)

    side = grid.size + 2
    is_mixed = grow(is_edge)
    is_known = framed(~is_mixed)
    is_wanted = framed(grow(is_edge, _GROWN))
    # Background cells of mixed colours grow their own surface, and foreground cells only what is behind them.
    is_own = framed(is_mixed & (near - shrink(far, 2) <= step))
    near, step = framed(near), framed(step)
    limit = near + torch.where(is_own, 0.5, -0.5) * step
    x, y = framed(grid.x), framed(grid.y)
    # A row for each cell, since rows of neighbours are gathered.
    known = framed(grid.planes).T.contiguous()
    grown, is_grown = torch.zeros_like(known), torch.zeros_like(is_known)
    first = is_known & framed(grow(is_mixed))
    around = [row * side + column for row in (-1, 0, 1) for column in (-1, 0, 1) if row or column]
    offsets = torch.tensor(around, device=near.device)
    inside = framed(torch.ones_like(is_edge))
    for distance in range(_GROWN):
        is_next = grow((is_grown | first).view(side, side)).view(-1) & is_wanted & inside & ~is_grown
        cells = is_next.nonzero().squeeze(-1)
        if not len(cells):
            break
        neighbours = cells.unsqueeze(-1) + offsets
        use_grown, use_known = is_grown[neighbours], is_known[neighbours]
        here_x, here_y, here_limit = (values[cells].unsqueeze(-1) for values in (x, y, limit))
        near_grown, near_known = grown[neighbours], known[neighbours]
        from_grown, from_known = (
            planes[..., 5] + planes[..., 3] * here_x + planes[..., 4] * here_y for planes in (near_grown, near_known)
        )
        use_grown &= from_grown < here_limit
        use_known &= ~use_grown & (from_known < here_limit)
        disparity = torch.where(use_grown, from_grown, from_known).masked_fill(~(use_grown | use_known), torch.nan)
        # The median belongs to the surface of most neighbours, and the mean of that surface is what grows.
        middle = disparity.nanmedian(dim=-1).values
        tolerance = (_SAME_SURFACE * middle).clamp(min=visible.least_step).unsqueeze(-1)
        weights = ((disparity - middle.unsqueeze(-1)).abs() < tolerance).to(near.dtype)
        planes = torch.where(use_grown.unsqueeze(-1), near_grown, near_known) * weights.unsqueeze(-1)
        planes = planes.sum(dim=1) / weights.sum(dim=1, keepdim=True).clamp(min=1.0)
        shift = max(visible.shift_x, visible.shift_y) / _STRIDE
        is_in_reach = is_own[cells] | (shift * (near[cells] - middle) >= distance - 2)
        is_good = is_in_reach & ~middle.isnan()
        cells = cells[is_good]
        grown[cells] = planes[is_good]
        is_grown[cells] = True
    shape = (side, side)
    return grown.T.reshape(6, *shape)[:, 1:-1, 1:-1], is_grown.view(shape)[1:-1, 1:-1]


def margin(visible: Visible) -> Sheet:
    """Return a margin around the image, as wide as the surfaces at its border need."""
    num = visible.disparity.shape[-1] // _MARGIN_STRIDE
    width = int(_MAX_MARGIN_SHARE * num)
    grid = _Grid(visible, _MARGIN_STRIDE, width)
    near, far = largest(visible.disparity, _MARGIN_STRIDE), -largest(-visible.disparity, _MARGIN_STRIDE)
    is_beside_edge = grow(largest(visible.is_edge, _MARGIN_STRIDE))
    is_foreground = is_beside_edge & (near - shrink(far) > (LEAST_SHARE * far).clamp(min=visible.least_step))
    weights = torch.where(is_foreground, _FOREGROUND_WEIGHT, 1.0)
    weights[2:-2, 2:-2] = 0.0
    planes = push_pull(grid.planes, F.pad(weights, (width,) * 4))
    beyond_x, beyond_y = ((place.abs() - 1.0) / grid.cell_size for place in (grid.x, grid.y))
    beyond = torch.maximum(beyond_x, beyond_y)
    # The colours of the border go on, and blend into those of the surroundings.
    inside = slice(width, width + num)
    continued = F.pad(planes[None, :3, inside, inside], (width,) * 4, mode="replicate")[0]
    planes[:3] = torch.lerp(continued, planes[:3], (beyond / _BLENDED).clamp(0.0, 1.0))
    # Each plane goes on from the border cell next to it, but not for ever, as a scene does not.
    border = mean(torch.stack([visible.slope_x, visible.slope_y, visible.disparity]), _MARGIN_STRIDE)
    planes[3], planes[4], nearest = F.pad(border.unsqueeze(0), (width,) * 4, mode="replicate")[0]
    last = 1.0 - grid.cell_size / 2
    change = planes[3] * (grid.x - grid.x.clamp(-last, last)) + planes[4] * (grid.y - grid.y.clamp(-last, last))
    disparity = torch.minimum(torch.maximum(nearest + change, 0.7 * nearest), 1.3 * nearest)
    needed_x, needed_y = (shift / _MARGIN_STRIDE * disparity + 1.0 for shift in (visible.shift_x, visible.shift_y))
    # It begins one cell below the image, so that no gap opens between them.
    is_outside = beyond > -1.0
    return grid.sheet(planes, _BEHIND * disparity, is_outside & (beyond_x < needed_x) & (beyond_y < needed_y))

"""Colours of Gaussians as a camera sees them."""

from __future__ import annotations

import torch
from torch import Tensor

from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.harmonics import basis
from sharp_cog.imaging.color import linear_to_srgb, srgb_to_linear
from sharp_cog.preview.view import View

_CHUNK = 1 << 15
"""Number of Gaussians evaluated at a time, so that their bands stay in a CPU's cache."""

_TINY = 1e-12
"""Least distance in metres that has a direction."""


def seen_colors(gaussians: Gaussians, view: View) -> Tensor:
    """Return the colours of Gaussians as a camera sees them.

    Args:
        gaussians: N Gaussians on any device.
        view: View whose camera sees them.

    Returns:
        (N, 3), linear RGB, not negative, with no upper limit: `Gaussians` has the formula.
    """
    harmonics = gaussians.harmonics
    if harmonics is None:
        return gaussians.colors_linear.clamp(min=0.0)
    position = gaussians.means.new_tensor(view.camera_position)
    colors = torch.empty_like(gaussians.colors_linear)
    for start in range(0, len(gaussians), _CHUNK):
        part = slice(start, start + _CHUNK)
        offset = gaussians.means[part] - position
        directions = offset / torch.linalg.vector_norm(offset, dim=-1, keepdim=True).clamp_(min=_TINY)
        shift = torch.einsum("nk,nkc->nc", basis(directions, gaussians.degree), harmonics[part])
        colors[part] = srgb_to_linear(linear_to_srgb(gaussians.colors_linear[part]).add_(shift).clamp_(min=0.0))
    return colors

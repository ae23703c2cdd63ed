"""Composer: applies the network's deltas to the base Gaussians. It has no weights."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.imaging.color import srgb_to_linear
from sharp_cog.model.initializer import BaseGaussians

NUM_ATTRIBUTES = 14
"""Number of attributes of a delta: mean 3, scale 3, quaternion 4, colour 3, opacity 1, in this order."""

# The checkpoint was trained with these steps and limits. Its deltas mean something else with any others.
_XY_STEP = 0.001
_Z_STEP = 0.001
_COLOR_STEP = 0.1
_MAX_SCALE_FACTOR = 10.0
_MIN_INVERSE_Z = 1e-6
_FAR_OFFSET = 1e-3


def compose(base: BaseGaussians, delta: Tensor) -> NDCGaussians:
    """Move, scale, rotate and colour the base Gaussians.

    Args:
        base: Base Gaussians on a grid of B x L x h x w.
        delta: (B, 14, L, h, w), unbounded.

    Returns:
        N = L * h * w Gaussians in the order layer, row, column.
    """
    # Each is (B, C, L, h, w).
    mean, scale, quaternion, color, opacity = delta.split([3, 3, 4, 3, 1], dim=1)

    # Depth moves through a softplus of its inverse, so that it stays positive whatever the network adds. At a delta of
    # zero both functions cancel; the clamp keeps `_inverse_softplus` finite.
    inverse_z = F.softplus(_inverse_softplus(base.inverse_z.clamp(min=_MIN_INVERSE_Z)) + _Z_STEP * mean[:, 2])
    # The offset bounds depth at 1000 units.
    z = 1.0 / (inverse_z + _FAR_OFFSET)
    x = base.x_ndc + _XY_STEP * mean[:, 0]
    y = base.y_ndc + _XY_STEP * mean[:, 1]
    # x and y are directions, so a Gaussian that moves in depth stays on its ray.
    means = torch.stack([z * x, z * y, z], dim=1)

    # 10 * sigmoid(10 / 9 * d + logit(0.1)) is 1 with slope 1 at d = 0, and at most 10.
    slope = 1.0 / (1.0 - 1.0 / _MAX_SCALE_FACTOR)
    offset = -math.log(_MAX_SCALE_FACTOR - 1.0)
    # The base scale is that of the moved depth, so that a Gaussian covers the same cell of the image as before.
    scales = (base.cell_size * z).unsqueeze(1) * _MAX_SCALE_FACTOR * torch.sigmoid(slope * scale + offset)

    # The clamp keeps the logits of black and white finite.
    colors_srgb = torch.sigmoid(torch.logit(base.colors_srgb.clamp(0.01, 0.99)) + _COLOR_STEP * color)

    global_scale = base.global_scale.view(-1, 1, 1)
    # So far all lengths are in units of the nearest depth; from here on they are metres. The base quaternion is the
    # identity, and the base opacity 0.5, whose logit is 0.
    return NDCGaussians(
        means=_flatten(means) * global_scale,
        scales=_flatten(scales) * global_scale,
        quaternions_wxyz=_flatten(torch.cat([1.0 + quaternion[:, :1], quaternion[:, 1:]], dim=1)),
        colors_linear=_flatten(srgb_to_linear(colors_srgb)),
        opacities=_flatten(torch.sigmoid(opacity)).squeeze(-1),
    )


def _inverse_softplus(x: Tensor) -> Tensor:
    """Compute log(exp(x) - 1) without overflow."""
    return x + torch.log(-torch.expm1(-x))


def _flatten(attribute: Tensor) -> Tensor:
    """Reshape (B, C, L, h, w) to (B, N, C)."""
    return attribute.flatten(2).transpose(1, 2)

"""Simplifying a scene: keep the Gaussians that contribute most to the view of the photograph's camera."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sharp_cog.geometry.gaussians import Gaussians

EVEN_FACTOR = 4.0
"""Factor within which contributions count as equal.

Compared with the strict order, a factor of four costs one decibel of likeness to the whole splat where contributions
span a factor of 80, and gains thirty where they span a factor of two.
"""

_GOLDEN_RATIO_32 = 2654435769
"""Fractional part of the golden ratio, times 2^32."""

_TINY = torch.finfo(torch.float32).tiny
"""Least contribution that has a logarithm."""


def prune(gaussians: Gaussians, *, max_gaussians: int | None = None, min_opacity: float = 0.0) -> Gaussians:
    """Drop the Gaussians that contribute least to the view of the photograph's camera.

    If contributions are alike, as those of a wall are, dropping the least first would empty one region after the other.
    Gaussians whose contributions differ by less than a factor of `EVEN_FACTOR` are therefore thinned out evenly. No
    Gaussian is dropped that contributes more than `EVEN_FACTOR` times as much as one that is kept.

    Args:
        gaussians: Scene with OpenCV axes and the photograph's camera at the origin.
        max_gaussians: Maximum number of Gaussians to keep; None keeps all.
        min_opacity: Least opacity of the Gaussians to keep.

    Returns:
        The remaining Gaussians, in their original order.
    """
    if max_gaussians is None and min_opacity <= 0:
        return gaussians
    kept = torch.nonzero(gaussians.opacities >= min_opacity).squeeze(-1)
    if max_gaussians is not None and len(kept) > max_gaussians:
        # Multiples of the golden ratio modulo 1 are spread evenly, however many there are (Weyl, 1916), and random
        # numbers are not. They are computed as integers modulo 2^32, whose products fit into int64.
        turns = (kept * _GOLDEN_RATIO_32 & 0xFFFFFFFF).to(torch.float32) / 2.0**32
        # A bonus of up to `EVEN_FACTOR`, added as a logarithm, decides between Gaussians that contribute alike.
        rank = contribution(gaussians)[kept].clamp(min=_TINY).log_() + math.log(EVEN_FACTOR) * turns
        kept = kept[torch.topk(rank, max_gaussians, sorted=False).indices].sort().values
    return gaussians.map(lambda tensor: tensor[kept])


def contribution(gaussians: Gaussians) -> Tensor:
    """Compute opacity times projected area on the image plane, up to a constant factor.

    Along a unit direction d, a Gaussian with axes R and standard deviations S casts a shadow whose area is proportional
    to det(S) |S^-1 R^T d|. On the image plane it shrinks with the squared distance and grows with 1 / cos^3 of the
    angle to the optical axis. Volume in place of area would favour distant Gaussians, as it grows with the cube of the
    distance.

    Returns:
        (N,), 0 for Gaussians behind the camera.
    """
    # A Gaussian at the camera itself has no direction; the clamp avoids a division by zero.
    distance = torch.linalg.vector_norm(gaussians.means, dim=-1).clamp(min=1e-12)
    w, vector = gaussians.quaternions_wxyz[:, :1], gaussians.quaternions_wxyz[:, 1:]
    direction = gaussians.means / distance.unsqueeze(-1)
    # R^T d: the conjugate of the quaternion rotates the direction into the Gaussian's own axes.
    twice = 2.0 * torch.linalg.cross(-vector, direction)
    local = direction + w * twice + torch.linalg.cross(-vector, twice)
    a, b, c = gaussians.scales.unbind(-1)
    x, y, z = local.unbind(-1)
    # det(S) S^-1 without a division, since deviations may be zero: each axis is multiplied by the two others.
    shadow = torch.sqrt((x * b * c) ** 2 + (y * a * c) ** 2 + (z * a * b) ** 2)
    depth = gaussians.means[:, 2]
    # 1 / distance^2 times 1 / cos^3, with cos = depth / distance.
    area = shadow * distance / depth.clamp(min=1e-6) ** 3
    return torch.where(depth > 0, gaussians.opacities * area, 0.0)

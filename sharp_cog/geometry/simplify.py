"""Fewer Gaussians: the ones that contribute most to the photograph's own view are kept."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sharp_cog.geometry.gaussians import Gaussians

EVEN_FACTOR = 4.0
"""Factor within which contributions count as equal. On a splat whose contributions span a factor of 80, four costs one
decibel of what the strict order keeps; where they span a factor of two, it gains thirty."""

_GOLDEN_RATIO_32 = 2654435769
"""The golden ratio's fraction of 2^32."""
_TINY = torch.finfo(torch.float32).tiny


def prune(gaussians: Gaussians, *, max_gaussians: int | None = None, min_opacity: float = 0.0) -> Gaussians:
    """Drops the Gaussians that add least to the picture, seen from the photograph's camera.

    Where contributions are much alike, as those of a wall are, the strict order would empty one region after the
    other. So what differs by less than a factor of `EVEN_FACTOR` is thinned out evenly: nothing is dropped that
    contributes more than that many times as much as something kept.

    Args:
        gaussians: OpenCV axes, the photograph's camera at the origin.
        max_gaussians: Keep at most so many: those of the largest `contribution`, thinned out. None keeps all.
        min_opacity: Drop what is less opaque.

    Returns:
        What is kept, in the order in which it came.
    """
    if max_gaussians is None and min_opacity <= 0:
        return gaussians
    kept = torch.nonzero(gaussians.opacities >= min_opacity).squeeze(-1)
    if max_gaussians is not None and len(kept) > max_gaussians:
        # Multiples of the golden ratio, modulo 1, are spread evenly whatever their number (Weyl, 1916).
        turns = (kept * _GOLDEN_RATIO_32 & 0xFFFFFFFF).to(torch.float32) / 2.0**32
        rank = contribution(gaussians)[kept].clamp(min=_TINY).log_() + math.log(EVEN_FACTOR) * turns
        kept = kept[torch.topk(rank, max_gaussians, sorted=False).indices].sort().values
    return Gaussians(
        means=gaussians.means[kept],
        scales=gaussians.scales[kept],
        quaternions_wxyz=gaussians.quaternions_wxyz[kept],
        colors_linear=gaussians.colors_linear[kept],
        opacities=gaussians.opacities[kept],
    )


def contribution(gaussians: Gaussians) -> Tensor:
    """Opacity times projected area on the photograph's picture plane, up to a factor, (N,); 0 behind the camera.

    Along a unit direction d, a Gaussian with axes R and standard deviations S casts a shadow whose area grows with
    det(S) |S^-1 R^T d|; on the picture plane it shrinks with the squared distance and grows with 1 / cos^3 of the angle
    off the axis. Volume instead of area would favour the far: it grows with the cube of the distance.
    """
    distance = torch.linalg.vector_norm(gaussians.means, dim=-1).clamp(min=1e-12)
    w, vector = gaussians.quaternions_wxyz[:, :1], gaussians.quaternions_wxyz[:, 1:]
    direction = gaussians.means / distance.unsqueeze(-1)
    # R^T d, by the conjugate of the quaternion.
    twice = 2.0 * torch.linalg.cross(-vector, direction)
    local = direction + w * twice + torch.linalg.cross(-vector, twice)
    a, b, c = gaussians.scales.unbind(-1)
    x, y, z = local.unbind(-1)
    # det(S) S^-1 without a division: each axis times the two other deviations.
    shadow = torch.sqrt((x * b * c) ** 2 + (y * a * c) ** 2 + (z * a * b) ** 2)
    depth = gaussians.means[:, 2]
    area = shadow * distance / depth.clamp(min=1e-6) ** 3
    return torch.where(depth > 0, gaussians.opacities * area, 0.0)

"""What of a scene is kept, and how it is placed: fewer Gaussians, other axes, another size or origin."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sharp_cog.gaussians import Gaussians

EVEN_FACTOR = 4.0
"""Contributions within this factor count as alike. On a splat whose contributions span a factor of 80, four costs a
decibel of what the strict order keeps; on one where they span two, it is worth thirty."""

NEAR_SHARE, FOCUS_SHARE, FAR_SHARE = 0.05, 0.5, 0.95
"""Which quantiles of depth stand for the nearest things, for what stays in the centre, and for the farthest."""

_GOLDEN_RATIO_32 = 2654435769
"""Of 2^32."""
_TINY = torch.finfo(torch.float32).tiny


def keep_visible(gaussians: Gaussians, *, max_gaussians: int | None = None, min_opacity: float = 0.0) -> Gaussians:
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


def place(
    gaussians: Gaussians, *, scale: float = 1.0, is_centred: bool = False
) -> tuple[Gaussians, tuple[float, float, float]]:
    """Scales a scene about the photograph's camera, then moves its centre, the median position, to the origin.

    Args:
        gaussians: The photograph's camera at the origin.
        scale: Factor on all lengths.
        is_centred: Whether the centre becomes the origin.

    Returns:
        The scene, and where the photograph's camera stands in it.
    """
    scaled = gaussians
    if scale != 1.0:
        scaled = replace(gaussians, means=gaussians.means * scale, scales=gaussians.scales * scale)
    if not is_centred or not len(gaussians):
        return scaled, (0.0, 0.0, 0.0)
    x, y, z = (-scaled.means.median(dim=0).values).tolist()
    return moved(scaled, (x, y, z)), (x, y, z)


def moved(gaussians: Gaussians, offset: tuple[float, float, float]) -> Gaussians:
    """Adds an offset (x, y, z) to all positions."""
    if not any(offset):
        return gaussians
    return replace(gaussians, means=gaussians.means + gaussians.means.new_tensor(offset))


def turn_about_x(gaussians: Gaussians) -> Gaussians:
    """Turns a scene by 180 degrees about x: between OpenCV axes (y down, z ahead) and OpenGL ones (y up, z back)."""
    w, x, y, z = gaussians.quaternions_wxyz.unbind(-1)
    turned = torch.stack([-x, w, -z, y], dim=-1)
    return replace(
        gaussians,
        means=gaussians.means * gaussians.means.new_tensor([1.0, -1.0, -1.0]),
        quaternions_wxyz=turned * torch.where(turned[:, :1] < 0, -1.0, 1.0),
    )


def depths_ahead(gaussians: Gaussians, *shares: float) -> list[float]:
    """Quantiles of the depths in metres of what lies ahead of the photograph's camera; 1 where nothing does."""
    depth_m = gaussians.means[:, 2].cpu().numpy()
    depth_m = depth_m[depth_m > 0]
    return [float(value) for value in np.quantile(depth_m, shares)] if len(depth_m) else [1.0] * len(shares)

"""Scaling, moving and re-orienting a scene of Gaussians."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.quaternions import canonicalize

NEAR_SHARE, FOCUS_SHARE, FAR_SHARE = 0.05, 0.5, 0.95
"""Quantiles of depth that stand for the nearest things, for the centre of a film's movement, and for the farthest."""


def scale_and_center(
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
    return translate(scaled, (x, y, z)), (x, y, z)


def translate(gaussians: Gaussians, offset: tuple[float, float, float]) -> Gaussians:
    """Adds an offset (x, y, z) to all positions."""
    if not any(offset):
        return gaussians
    return replace(gaussians, means=gaussians.means + gaussians.means.new_tensor(offset))


def opencv_to_opengl(gaussians: Gaussians) -> Gaussians:
    """Turns a scene by 180 degrees about x: between OpenCV axes (y down, z ahead) and OpenGL ones (y up, z back)."""
    w, x, y, z = gaussians.quaternions_wxyz.unbind(-1)
    return replace(
        gaussians,
        means=gaussians.means * gaussians.means.new_tensor([1.0, -1.0, -1.0]),
        quaternions_wxyz=canonicalize(torch.stack([-x, w, -z, y], dim=-1)),
    )


def depths_ahead(gaussians: Gaussians, *shares: float) -> list[float]:
    """Quantiles of the depths in metres of what lies ahead of the photograph's camera; 1 where nothing does."""
    depth_m = gaussians.means[:, 2].cpu().numpy()
    depth_m = depth_m[depth_m > 0]
    return [float(value) for value in np.quantile(depth_m, shares)] if len(depth_m) else [1.0] * len(shares)

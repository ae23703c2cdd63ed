"""Scaling, moving and rotating a scene of Gaussians."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.harmonics import half_turn_about_x
from sharp_cog.geometry.quaternions import canonicalize

NEAR_SHARE = 0.05
"""Quantile of depth that stands for the nearest objects; the very nearest Gaussian may be a stray one."""

FOCUS_SHARE = 0.5
"""Quantile of depth that a moving camera turns about."""

FAR_SHARE = 0.95
"""Quantile of depth that stands for the farthest objects."""


def scale_and_center(
    gaussians: Gaussians, *, scale: float = 1.0, is_centred: bool = False
) -> tuple[Gaussians, tuple[float, float, float]]:
    """Scale a scene about the photograph's camera, then move its centre, which is the median position, to the origin.

    Args:
        gaussians: Scene with the photograph's camera at the origin.
        scale: Factor on all lengths.
        is_centred: Whether to move the centre to the origin.

    Returns:
        The scene, and the position of the photograph's camera in it.
    """
    scaled = gaussians
    if scale != 1.0:
        scaled = replace(gaussians, means=gaussians.means * scale, scales=gaussians.scales * scale)
    if not is_centred or not len(gaussians):
        return scaled, (0.0, 0.0, 0.0)
    # The median of each axis, since a mean would follow the few far Gaussians of a sky.
    x, y, z = (-scaled.means.median(dim=0).values).tolist()
    return translate(scaled, (x, y, z)), (x, y, z)


def translate(gaussians: Gaussians, offset: tuple[float, float, float]) -> Gaussians:
    """Add an offset (x, y, z) in metres to all positions."""
    if not any(offset):
        return gaussians
    return replace(gaussians, means=gaussians.means + gaussians.means.new_tensor(offset))


def opencv_to_opengl(gaussians: Gaussians) -> Gaussians:
    """Rotate a scene by 180 degrees about x, from OpenCV axes (y down, z forward) to OpenGL axes (y up, z backward).

    The rotation is its own inverse.
    """
    # The rotation is the quaternion 0, 1, 0, 0, and its product with w, x, y, z is -x, w, -z, y.
    w, x, y, z = gaussians.quaternions_wxyz.unbind(-1)
    harmonics = gaussians.harmonics
    if harmonics is not None:
        harmonics = harmonics * half_turn_about_x(harmonics.shape[1]).to(harmonics.device).unsqueeze(-1)
    return replace(
        gaussians,
        means=gaussians.means * gaussians.means.new_tensor([1.0, -1.0, -1.0]),
        quaternions_wxyz=canonicalize(torch.stack([-x, w, -z, y], dim=-1)),
        harmonics=harmonics,
    )


def depths_ahead(gaussians: Gaussians, *shares: float) -> list[float]:
    """Return quantiles of depth in metres of the Gaussians in front of the photograph's camera, or 1 without any."""
    # In numpy, since `torch.quantile` refuses more than 16 million values.
    depth_m = gaussians.means[:, 2].cpu().numpy()
    depth_m = depth_m[depth_m > 0]
    return [float(value) for value in np.quantile(depth_m, shares)] if len(depth_m) else [1.0] * len(shares)

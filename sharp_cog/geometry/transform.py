"""Scaling, moving and rotating a scene of Gaussians."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from sharp_cog.geometry.gaussians import NUM_BANDS, Gaussians
from sharp_cog.geometry.harmonics import half_turn_about_x, rotated
from sharp_cog.geometry.quaternions import canonicalize, from_matrix, multiply

NEAR_SHARE = 0.05
"""Quantile of depth that stands for the nearest objects; the very nearest Gaussian may be a stray one."""

FOCUS_SHARE = 0.5
"""Quantile of depth that a moving camera turns about."""

FAR_SHARE = 0.95
"""Quantile of depth that stands for the farthest objects."""

MAX_SHEAR = 1e-4
"""Largest relative difference of squared lengths that counts as rounding in a map that keeps shapes."""


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


def concatenate(parts: Sequence[Gaussians]) -> Gaussians:
    """Return one scene with the Gaussians of several, in their order; harmonics that only some have are zero."""
    if len(parts) == 1:
        return parts[0]
    empty = torch.empty(0, 3)
    without = Gaussians(
        means=empty, scales=empty, quaternions_wxyz=torch.empty(0, 4), colors_linear=empty, opacities=torch.empty(0)
    )
    joined = {name: torch.cat([getattr(part, name) for part in (without, *parts)]) for name in without.tensors()}
    num_bands = max((NUM_BANDS[part.degree] for part in parts), default=0)
    if not num_bands:
        return Gaussians(**joined)
    harmonics = torch.zeros(len(joined["means"]), num_bands, 3)
    for part, end in zip(parts, accumulate(map(len, parts)), strict=True):
        if part.harmonics is not None:
            harmonics[end - len(part) : end, : part.harmonics.shape[1]] = part.harmonics
    return Gaussians(**joined, harmonics=harmonics)


def translate(gaussians: Gaussians, offset: tuple[float, float, float]) -> Gaussians:
    """Add an offset (x, y, z) in metres to all positions."""
    if not any(offset):
        return gaussians
    return replace(gaussians, means=gaussians.means + gaussians.means.new_tensor(offset))


def rotate(gaussians: Gaussians, rotation: NDArray[np.float64]) -> Gaussians:
    """Rotate a scene about the origin.

    Args:
        gaussians: Any scene.
        rotation: (3, 3), orthogonal with determinant 1; it maps old coordinates to new ones.
    """
    turn = gaussians.means.new_tensor(rotation)
    first = gaussians.quaternions_wxyz.new_tensor(from_matrix(rotation)).expand_as(gaussians.quaternions_wxyz)
    turned = normalize(multiply(first, gaussians.quaternions_wxyz), dim=-1)
    return replace(
        gaussians,
        means=gaussians.means @ turn.T,
        quaternions_wxyz=canonicalize(turned),
        harmonics=None if gaussians.harmonics is None else rotated(gaussians.harmonics, rotation),
    )


def place(gaussians: Gaussians, matrix: NDArray[np.float64]) -> Gaussians:
    """Apply an affine map that keeps shapes: a rotation, one scale for all axes, and a translation.

    Args:
        gaussians: Any scene.
        matrix: (4, 4), finite, for column vectors.

    Raises:
        ValueError: The map mirrors, shears, scales the axes unevenly, or is not invertible.
    """
    linear = matrix[:3, :3]
    scale = float(np.cbrt(max(np.linalg.det(linear), 0.0)))
    # Matrices in files often have the precision of float32.
    if scale <= 0 or np.abs(linear @ linear.T / scale**2 - np.eye(3)).max() > MAX_SHEAR:
        raise ValueError("the map mirrors, shears or scales the axes unevenly")
    turned = rotate(gaussians, linear / scale)
    scaled = replace(turned, means=turned.means * scale, scales=turned.scales * scale)
    x, y, z = matrix[:3, 3].tolist()
    return translate(scaled, (x, y, z))


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


def change_axes(gaussians: Gaussians, matrix: NDArray[np.float64]) -> Gaussians:
    """Express a scene in other axes, of either handedness.

    Args:
        gaussians: N Gaussians.
        matrix: (3, 3), maps the old coordinates of a point to the new ones: in each row one 1 or -1, and zeros.
    """
    # The covariance M R S^2 R^T M^T is R' (M S M^T)^2 R'^T with the rotation R' = M R M^T, which turns by the same
    # angle about M times the axis, in the other sense if M mirrors. M S M^T has the elements of S in the new order.
    mapping = gaussians.means.new_tensor(matrix)
    w, vector = gaussians.quaternions_wxyz[:, :1], gaussians.quaternions_wxyz[:, 1:]
    turned = vector @ mapping.T * round(float(np.linalg.det(matrix)))
    return replace(
        gaussians,
        means=gaussians.means @ mapping.T,
        scales=gaussians.scales @ mapping.abs().T,
        quaternions_wxyz=torch.cat([w, turned], dim=1),
        harmonics=None if gaussians.harmonics is None else rotated(gaussians.harmonics, matrix),
    )


def share_ahead(gaussians: Gaussians) -> float:
    """Return the share of Gaussians in front of the photograph's camera; 0 without any."""
    return float((gaussians.means[:, 2] > 0).float().mean()) if len(gaussians) else 0.0


def depths_ahead(gaussians: Gaussians, *shares: float) -> list[float]:
    """Return quantiles of depth in metres of the Gaussians in front of the photograph's camera, or 1 without any."""
    # In numpy, since `torch.quantile` refuses more than 16 million values.
    depth_m = gaussians.means[:, 2].cpu().numpy()
    depth_m = depth_m[depth_m > 0]
    return [float(value) for value in np.quantile(depth_m, shares)] if len(depth_m) else [1.0] * len(shares)

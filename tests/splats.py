"""Splats for tests, and measures of their likeness."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.quaternions import canonicalize

CAMERA = Camera(width=1200, height=800, focal_length_px=1150.25)
SIZES = [0, 1, 255, 256, 257]
"""Numbers of Gaussians about the size of a chunk in compressed PLY, which is 256."""


def random_gaussians(num: int, seed: int = 0) -> Gaussians:
    """Return Gaussians all around the camera, with scales from 0.01 mm to 100 mm."""
    generator = torch.Generator().manual_seed(seed)
    quaternions = torch.nn.functional.normalize(torch.randn(num, 4, generator=generator), dim=-1)
    return Gaussians(
        means=torch.randn(num, 3, generator=generator) * 3 + 5,
        scales=10 ** (torch.rand(num, 3, generator=generator) * 4 - 5),
        quaternions_wxyz=canonicalize(quaternions),
        colors_linear=torch.rand(num, 3, generator=generator),
        opacities=torch.rand(num, generator=generator),
    )


def with_harmonics(gaussians: Gaussians, degree: int, seed: int = 1) -> Gaussians:
    """Return the same Gaussians with random spherical harmonics, and colours out of range as trained ones have."""
    generator = torch.Generator().manual_seed(seed)
    num = len(gaussians)
    return replace(
        gaussians,
        colors_linear=gaussians.colors_linear * 3 - 1,
        harmonics=torch.randn(num, (degree + 1) ** 2 - 1, 3, generator=generator) * 0.2,
    )


def gaussians_in_front(num: int) -> Gaussians:
    """Return small Gaussians at least a metre in front of the camera."""
    gaussians = random_gaussians(num)
    gaussians.means[:, 2].abs_().add_(1.0)
    gaussians.scales.clamp_(1e-3, 1e-2)
    return gaussians


def extreme_gaussians() -> Gaussians:
    """Return Gaussians at one place with opacities of 0 and 1, scales of 0 and of kilometres, and rotations by axis."""
    axes = torch.eye(4)
    quaternions = torch.cat([axes, torch.nn.functional.normalize(axes + axes.roll(1, 0), dim=-1)]).repeat(64, 1)
    num = len(quaternions)
    return Gaussians(
        means=torch.tensor([0.5, -0.25, 3.0]).expand(num, 3).clone(),
        scales=torch.tensor([[0.0, 1e-30, 1.0], [3e3, 1e-4, 0.02]]).repeat(num // 2, 1),
        quaternions_wxyz=quaternions,
        colors_linear=torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.0, 0.002]]).repeat(num // 2, 1),
        opacities=torch.tensor([0.0, 1.0]).repeat(num // 2),
    )


def srgb_of(linear: torch.Tensor) -> np.ndarray:
    """Apply the sRGB curve of IEC 61966-2-1 in float64, as an odd function."""
    values = linear.double().numpy()
    size = np.abs(values)
    curve: np.ndarray = np.where(size <= 0.0031308, 12.92 * size, 1.055 * size ** (1 / 2.4) - 0.055)
    signed: np.ndarray = np.copysign(curve, values)
    return signed


def degrees_between(first_wxyz: np.ndarray, second_wxyz: np.ndarray) -> np.ndarray:
    """Return the angles between rotations, computed by scipy."""
    if not len(first_wxyz):
        return np.empty(0)
    first = Rotation.from_quat(np.asarray(first_wxyz, dtype=float), scalar_first=True)
    second = Rotation.from_quat(np.asarray(second_wxyz, dtype=float), scalar_first=True)
    angles: np.ndarray = np.degrees((first.inv() * second).magnitude())
    return angles

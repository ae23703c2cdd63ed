"""Scenes to render."""

from __future__ import annotations

import torch

from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians

CAMERA = Camera(width=96, height=64, focal_length_px=80.0)


def wall(depth_m: float = 2.0, *, width_m: float = 4.0, hole_m: float = 0.0) -> Gaussians:
    """Return a wall across the view, red on its left half and green on its right, with a hole in the centre.

    Wall and hole have the aspect ratio 10 : 7.
    """
    spacing_m = depth_m / 40
    steps = max(2, round(width_m / spacing_m) + 1)
    x, y = torch.meshgrid(torch.linspace(-0.5, 0.5, steps), torch.linspace(-0.35, 0.35, steps), indexing="ij")
    x, y = width_m * x.flatten(), width_m * y.flatten()
    is_solid = torch.maximum(x.abs(), y.abs() / 0.7) >= hole_m / 2
    x, y = x[is_solid], y[is_solid]
    num, red = len(x), (x < 0).float()
    return Gaussians(
        means=torch.stack([x, y, torch.full((num,), depth_m)], dim=-1),
        scales=torch.full((num, 3), spacing_m),
        quaternions_wxyz=torch.tensor([1.0, 0, 0, 0]).repeat(num, 1),
        colors_linear=torch.stack([red, 1 - red, torch.zeros(num)], dim=-1),
        opacities=torch.full((num,), 0.9),
    )


def together(*scenes: Gaussians) -> Gaussians:
    """Return one scene with the Gaussians of several."""
    names = scenes[0].tensors()
    return Gaussians(**{name: torch.cat([scene.tensors()[name] for scene in scenes]) for name in names})

"""A scene whose corners have different colours, sizes and depths, and what is measured of a picture of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.imaging.color import srgb_to_linear

CAMERA = Camera(width=480, height=320, focal_length_px=400.0)
Picture = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A square in the picture: its middle and its side in pixels, its depth in metres, and its sRGB colour."""

    name: str
    middle: tuple[float, float]
    side: float
    depth_m: float
    srgb: tuple[int, int, int]


PATCHES = (
    Patch(name="top left", middle=(110, 80), side=90, depth_m=2.0, srgb=(200, 40, 40)),
    Patch(name="top right", middle=(370, 90), side=60, depth_m=3.0, srgb=(40, 180, 60)),
    Patch(name="bottom left", middle=(120, 240), side=70, depth_m=4.0, srgb=(60, 70, 210)),
    Patch(name="bottom right", middle=(350, 235), side=110, depth_m=5.0, srgb=(210, 190, 50)),
)
_ACROSS = 24
"""Gaussians across a patch."""


def scene() -> Gaussians:
    """Return the patches, each as a dense grid of opaque Gaussians with OpenCV axes."""
    means, scales, colors = [], [], []
    for patch in PATCHES:
        metres = patch.depth_m / CAMERA.focal_length_px
        steps = (np.arange(_ACROSS) + 0.5) / _ACROSS - 0.5
        x, y = np.meshgrid(steps, steps)
        column, row = (np.array(patch.middle) - [CAMERA.width / 2, CAMERA.height / 2])[
            :, None, None
        ] + patch.side * np.stack([x, y])
        means.append(np.stack([column * metres, row * metres, np.full_like(x, patch.depth_m)], axis=-1).reshape(-1, 3))
        scales.append(np.full(_ACROSS**2, 0.7 * patch.side / _ACROSS * metres))
        colors.append(np.tile(np.array(patch.srgb) / 255, (_ACROSS**2, 1)))
    num = len(PATCHES) * _ACROSS**2
    return Gaussians(
        means=torch.from_numpy(np.concatenate(means)).float(),
        scales=torch.from_numpy(np.concatenate(scales)).float().unsqueeze(1).repeat(1, 3),
        quaternions_wxyz=torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(num, 1),
        colors_linear=srgb_to_linear(torch.from_numpy(np.concatenate(colors)).float()),
        opacities=torch.full((num,), 0.98),
    )


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a picture shows of a patch: the middle of its pixels, its side, and its median colour."""

    middle: tuple[float, float]
    side: float
    srgb: tuple[float, float, float]


def seen(picture: Picture) -> dict[str, Seen]:
    """Find the patches of a picture by their colours, wherever they are; a patch that is not there is left out."""
    found = {}
    values = picture.astype(float)
    directions = values / np.linalg.norm(values, axis=2, keepdims=True).clip(1e-9)
    for patch in PATCHES:
        color = np.array(patch.srgb) / np.linalg.norm(patch.srgb)
        # Pixels at the edge are darker and have the same hue.
        is_patch = (directions @ color > 0.97) & (values.max(axis=2) > max(patch.srgb) / 2)
        rows, columns = np.nonzero(is_patch)
        if len(rows) > 100:
            red, green, blue = np.median(values[is_patch], axis=0).tolist()
            found[patch.name] = Seen(
                middle=(float(columns.mean()) + 0.5, float(rows.mean()) + 0.5),
                side=float(np.sqrt(len(rows))),
                srgb=(red, green, blue),
            )
    return found

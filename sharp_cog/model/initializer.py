"""Initializer: places a regular grid of base Gaussians on an image's depth. It has no weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sharp_cog.model.config import NUM_LAYERS

_STRIDE = 2
"""Number of pixels to a Gaussian, in each direction."""

_MAX_RELATIVE_DEPTH = 100.0
"""Largest depth at which a Gaussian starts, in units of the scene's nearest depth."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseGaussians:
    """Base Gaussians on a grid of L = 2 layers of h x w cells, in units of the scene's nearest depth.

    A base Gaussian has the identity quaternion, opacity 0.5 and, on each axis, the standard deviation `cell_size * z`,
    which is the width of its cell at its depth.

    Attributes:
        inverse_z: (B, L, h, w), 1 / depth of the cell's nearest pixel.
        x_ndc: (w,), centres of the cells; the image's left edge is at -1 and its right edge at 1.
        y_ndc: (h, 1), centres of the cells; the image's top edge is at -1 and its bottom edge at 1.
        cell_size: Width of a cell in NDC.
        colors_srgb: (B, 3, 1, h, w), mean colour of the cell, the same for both layers.
        feature_input: (B, 5, H, W), input of the feature model: colour and disparity in [-1, 1].
        global_scale: (B,), the unit in metres.
    """

    inverse_z: Tensor
    x_ndc: Tensor
    y_ndc: Tensor
    cell_size: float
    colors_srgb: Tensor
    feature_input: Tensor
    global_scale: Tensor


def initialize(image: Tensor, depth_m: Tensor) -> BaseGaussians:
    """Place base Gaussians on two surfaces.

    Args:
        image: (B, 3, H, W), RGB in [0, 1].
        depth_m: (B, 2, H, W), metres, positive; or (B, 1, H, W), the same surface for both layers.
    """
    height, width = image.shape[-2:]
    # The nearest pixel of both layers becomes the unit, one for each image of the batch. A single stray pixel would
    # therefore push all others to the limit: `sharp_cog.depth.maps` guards against it.
    depth_factor = 1.0 / (depth_m.amin(dim=(1, 2, 3)) + 1e-6)
    depth = (depth_m * depth_factor.view(-1, 1, 1, 1)).clamp(max=_MAX_RELATIVE_DEPTH)
    # A single layer serves both: `expand` repeats it without a copy.
    disparity = (1.0 / depth).expand(-1, NUM_LAYERS, -1, -1)
    return BaseGaussians(
        # The largest disparity is the nearest pixel: a cell across an edge belongs to the object in front.
        inverse_z=F.max_pool2d(disparity, _STRIDE),
        x_ndc=_cell_centres(width, image),
        y_ndc=_cell_centres(height, image).unsqueeze(-1),
        cell_size=2.0 * _STRIDE / width,
        # A dimension of one in place of the layers, which `compose` broadcasts.
        colors_srgb=F.avg_pool2d(image, _STRIDE).unsqueeze(2),
        feature_input=2.0 * torch.cat([image, disparity], dim=1) - 1.0,
        global_scale=1.0 / depth_factor,
    )


def _cell_centres(num_pixels: int, like: Tensor) -> Tensor:
    """Return the centres of the cells along an axis in NDC, (num_pixels / 2,), with the device and type of `like`."""
    edges = torch.arange(num_pixels // _STRIDE, device=like.device, dtype=like.dtype) * _STRIDE
    return 2.0 * (edges + 0.5 * _STRIDE) / num_pixels - 1.0

"""The sRGB transfer function (IEC 61966-2-1)."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_to_srgb(linear: Tensor) -> Tensor:
    """Convert linear light to sRGB values, both in [0, 1], of any shape."""
    # Both branches are computed everywhere. The clamp keeps the power of a small or negative number from being NaN.
    curve = linear.clamp(min=0.0031308).pow_(1.0 / 2.4).mul_(1.055).sub_(0.055)
    return torch.where(linear <= 0.0031308, linear * 12.92, curve)


def srgb_to_linear(srgb: Tensor) -> Tensor:
    """Convert sRGB values to linear light, both in [0, 1], of any shape."""
    curve = srgb.clamp(min=0.04045).add_(0.055).div_(1.055).pow_(2.4)
    return torch.where(srgb <= 0.04045, srgb / 12.92, curve)

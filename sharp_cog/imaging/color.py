"""The sRGB transfer function (IEC 61966-2-1), extended beyond [0, 1].

Colours of trained splats are out of that range. The curve goes on beyond 1, and is an odd function, as in scRGB
(IEC 61966-2-2).
"""

from __future__ import annotations

import torch
from torch import Tensor


def linear_to_srgb(linear: Tensor) -> Tensor:
    """Convert linear light to sRGB values, of any shape."""
    magnitude = linear.abs()
    # Both branches are computed everywhere. The clamp keeps the gradient of a small number's power from being infinite.
    curve = magnitude.clamp(min=0.0031308).pow_(1.0 / 2.4).mul_(1.055).sub_(0.055)
    return torch.where(magnitude <= 0.0031308, linear * 12.92, curve.copysign_(linear))


def srgb_to_linear(srgb: Tensor) -> Tensor:
    """Convert sRGB values to linear light, of any shape."""
    magnitude = srgb.abs()
    curve = magnitude.clamp(min=0.04045).add_(0.055).div_(1.055).pow_(2.4)
    return torch.where(magnitude <= 0.04045, srgb / 12.92, curve.copysign_(srgb))

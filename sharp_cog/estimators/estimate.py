"""The result of a depth estimator, and what all estimators need to make it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sharp_cog.imaging.images import SourceImage
from sharp_cog.runtime.checkpoint import differences

# Mean and standard deviation of the colours in ImageNet, with which DINOv2 was trained.
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Depth that an estimator has found for an image.

    Attributes:
        depth_m: (height, width) float32, metres along the optical axis, with the size of the image; infinite where the
            estimator finds no surface, such as in a sky.
        focal_length_px: Estimated focal length in pixels of the image; None if the estimator finds none.
    """

    depth_m: NDArray[np.float32]
    focal_length_px: float | None = None


Estimator = Callable[[SourceImage], Estimate]
"""Function that estimates the depth of an image."""


def fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Assign the tensors of a checkpoint to a network, in float32.

    Raises:
        ValueError: They are not the network's; the message names the first differences.
    """
    tensors = {name: tensor.float() for name, tensor in state.items()}
    if what := differences(model, tensors):
        raise ValueError(what)
    model.load_state_dict(tensors, strict=True, assign=True)


def pixels_of(source: SourceImage, device: torch.device) -> Tensor:
    """Return the image as (1, 3, height, width) float32 in [0, 1]."""
    return torch.from_numpy(source.rgb).to(device).permute(2, 0, 1).unsqueeze(0).float() / 255.0


def normalized(pixels: Tensor) -> Tensor:
    """Return pixels (B, 3, H, W) in [0, 1] with the mean and deviation of ImageNet taken out, the input of DINOv2."""
    mean, std = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (_IMAGENET_MEAN, _IMAGENET_STD))
    return (pixels - mean) / std


def resized(values: Tensor, height: int, width: int) -> Tensor:
    """Return values (B, C, H, W) in another size, by bilinear interpolation."""
    return F.interpolate(values, size=(height, width), mode="bilinear", align_corners=False)

"""A decoded picture, and a depth map if there is one, become the network's input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sharp_cog.depth import DepthMap
from sharp_cog.images import SourceImage
from sharp_cog.network.config import IMAGE_SIZE


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInput:
    """What a predictor is called with.

    Attributes:
        image: (1, 3, 1536, 1536), float32 RGB in [0, 1].
        disparity_factor: (1,), focal length over width of the original picture, both in pixels.
        depth_m: (1, 1, 1536, 1536), metres, or None.

    Raises:
        ValueError: A shape is wrong.
    """

    image: Tensor
    disparity_factor: Tensor
    depth_m: Tensor | None = None

    def __post_init__(self) -> None:
        expected = {
            "image": (1, 3, IMAGE_SIZE, IMAGE_SIZE),
            "disparity_factor": (1,),
            "depth_m": (1, 1, IMAGE_SIZE, IMAGE_SIZE),
        }
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {shape}")


def preprocess(source: SourceImage, depth: DepthMap | None, *, device: torch.device) -> ModelInput:
    """Moves a picture and its depth map to the device and resizes them to 1536 x 1536, whatever their aspect.

    Bilinear with `align_corners=True` and without antialiasing, as SHARP was trained.
    """
    # The bytes travel as they are, a quarter of the floats that they become on the device.
    rgb = torch.from_numpy(source.rgb).to(device).permute(2, 0, 1).unsqueeze(0)
    depth_m = None if depth is None else _resize(torch.from_numpy(depth.depth_m).to(device)[None, None])
    return ModelInput(
        image=_resize(rgb.float() / 255.0),
        disparity_factor=torch.tensor([source.camera.disparity_factor], dtype=torch.float32, device=device),
        depth_m=depth_m,
    )


def _resize(pixels: Tensor) -> Tensor:
    """(1, C, H, W) -> (1, C, 1536, 1536)."""
    return F.interpolate(pixels, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=True)

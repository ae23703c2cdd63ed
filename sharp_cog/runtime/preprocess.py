"""Conversion of a decoded image, and of a depth map if it has one, to the model's input."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sharp_cog.depth.maps import DepthMap
from sharp_cog.imaging.images import SourceImage
from sharp_cog.model.external_depth import DEFAULT_USE, DepthUse

LARGE_PX = 50_000_000
"""Number of pixels above which an image or a map is sampled pixel by pixel, instead of being copied as a whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInput:
    """Input of a predictor, for one image of S x S pixels.

    Attributes:
        image: (1, 3, S, S), float32 RGB in [0, 1].
        disparity_factor: (1,), focal length over width of the original image, both in pixels.
        aspect: Width over height of the original image.
        depth_m: (1, 1, S, S), external depth in metres, NaN where unknown; or None.
        use: Use of the external depth in place of monodepth.
        image_hash: Hash of the image, by which its encoding can be reused; None means that it is not reused.

    Raises:
        ValueError: A shape is wrong.
    """

    image: Tensor
    disparity_factor: Tensor
    aspect: float = 1.0
    depth_m: Tensor | None = None
    use: DepthUse = DEFAULT_USE
    image_hash: str | None = None

    def __post_init__(self) -> None:
        size = self.image.shape[-1]
        expected = {"image": (1, 3, size, size), "disparity_factor": (1,), "depth_m": (1, 1, size, size)}
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {shape}")


def preprocess(
    source: SourceImage,
    depth: DepthMap | None,
    *,
    size: int,
    device: torch.device,
    use: DepthUse = DEFAULT_USE,
    image_hash: str | None = None,
) -> ModelInput:
    """Move an image and its depth map to the device and resize both to S x S, whatever their aspect.

    The interpolation is bilinear with `align_corners=True` and without antialiasing, the same as in SHARP's training.

    Args:
        source: The image.
        depth: External depth for the same view, or None.
        size: S, in pixels.
        device: Device of the model.
        use: See `ModelInput`.
        image_hash: See `ModelInput`.
    """
    # Copied as bytes, which are a quarter of the floats that they become on the device.
    image = _resize(torch.from_numpy(source.rgb), size, device, white=255.0)
    depth_m = None if depth is None else _resize(torch.from_numpy(depth.depth_m)[..., None], size, device)
    return ModelInput(
        image=image,
        disparity_factor=torch.tensor([source.camera.disparity_factor], dtype=torch.float32, device=device),
        aspect=source.camera.width / source.camera.height,
        depth_m=depth_m,
        use=use,
        image_hash=image_hash,
    )


def _resize(pixels: Tensor, size: int, device: torch.device, *, white: float = 1.0) -> Tensor:
    """Return (1, C, S, S) floats on the device for (H, W, C) on the CPU, divided by `white`."""
    height, width = pixels.shape[:2]
    if height * width > LARGE_PX:
        return _sample(pixels, size, white).to(device)
    # NaN in a depth map spreads to every pixel that is interpolated from it, so unknown never mixes with known.
    pixels = pixels.to(device).permute(2, 0, 1).unsqueeze(0).float()
    if white != 1:
        pixels = pixels / white
    return F.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=True)


def _sample(pixels: Tensor, size: int, white: float) -> Tensor:
    """Return (1, C, S, S) for (H, W, C): what interpolation returns, within the rounding of float32.

    Without antialiasing, each pixel of the result needs four pixels of the image. The others never become floats, which
    would take gigabytes.
    """
    rows, next_rows, down = _places(pixels.shape[0], size)
    columns, next_columns, across = _places(pixels.shape[1], size)

    def between_columns(rows: Tensor) -> Tensor:
        chosen = pixels[rows]
        left, right = chosen[:, columns].float() / white, chosen[:, next_columns].float() / white
        return torch.lerp(left, right, across[None, :, None])

    between_rows = torch.lerp(between_columns(rows), between_columns(next_rows), down[:, None, None])
    return between_rows.permute(2, 0, 1).unsqueeze(0).contiguous()


def _places(length: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two pixels around each of S places from the first to the last pixel, and the part of the second."""
    positions = torch.arange(size, dtype=torch.float32) * torch.tensor((length - 1) / (size - 1), dtype=torch.float32)
    lower = positions.floor().long().clamp(max=length - 1)
    return lower, (lower + 1).clamp(max=length - 1), positions - lower

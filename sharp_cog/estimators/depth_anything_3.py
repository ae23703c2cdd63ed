"""Depth Anything 3 Metric (arXiv 2511.10647) in plain torch: depth in metres for an image of known focal length.

Attribute names are those of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharp_cog.estimators import dinov2
from sharp_cog.estimators.dinov2 import PATCH_SIZE
from sharp_cog.estimators.estimate import Estimate, fill, normalized, pixels_of, resized
from sharp_cog.imaging.images import SourceImage

_LONG_SIDE_PX = 504
"""Length of the image's longer side for the network."""

_CANONICAL_FOCAL_LENGTH_PX = 300.0
"""Focal length, in pixels of the network's input, for which its depth is in metres."""

_SKY_THRESHOLD = 0.3
"""Output of the head for the sky, from which on a pixel is sky."""

_MIN_PIXELS = 10
"""Pixels of sky, and of the rest, below which the sky is ignored."""

_FAR_QUANTILE = 0.99
"""Quantile of the depth of everything else that the sky gets."""

_HEAD_CHANNELS = 32
"""Channels before the last convolution of a head."""


class _ResidualUnit(nn.Module):
    """Two convolutions, added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        mixed: Tensor = features + self.conv2(F.relu(self.conv1(F.relu(features))))
        return mixed


class _Fusion(nn.Module):
    """Adds the features of a finer level and enlarges the result."""

    def __init__(self, channels: int, *, has_lateral: bool = True) -> None:
        super().__init__()
        if has_lateral:
            self.resConfUnit1 = _ResidualUnit(channels)
        self.resConfUnit2 = _ResidualUnit(channels)
        self.out_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, coarse: Tensor, lateral: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Map (B, channels, H, W) to (B, channels, *size)."""
        if lateral is not None:
            coarse = coarse + self.resConfUnit1(lateral)
        enlarged = F.interpolate(self.resConfUnit2(coarse), size, mode="bilinear", align_corners=True)
        fused: Tensor = self.out_conv(enlarged)
        return fused


class _Scratch(nn.Module):
    """The layers after the projections, under their name in the checkpoint."""

    def __init__(self, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = (
            nn.Conv2d(width, channels, 3, padding=1, bias=False) for width in widths
        )
        self.refinenet1, self.refinenet2, self.refinenet3 = (_Fusion(channels) for _ in range(3))
        self.refinenet4 = _Fusion(channels, has_lateral=False)
        self.output_conv1 = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.output_conv2, self.sky_output_conv2 = (
            nn.Sequential(
                nn.Conv2d(channels // 2, _HEAD_CHANNELS, 3, padding=1), nn.ReLU(), nn.Conv2d(_HEAD_CHANNELS, 1, 1)
            )
            for _ in range(2)
        )


class _DPT(nn.Module):
    """Dense prediction head (arXiv 2103.13413) with outputs for depth and sky."""

    def __init__(self, width: int, widths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.projects = nn.ModuleList(nn.Conv2d(width, each, 1) for each in widths)
        self.resize_layers = nn.ModuleList(
            (
                nn.ConvTranspose2d(widths[0], widths[0], kernel_size=4, stride=4),
                nn.ConvTranspose2d(widths[1], widths[1], kernel_size=2, stride=2),
                nn.Identity(),
                nn.Conv2d(widths[3], widths[3], kernel_size=3, stride=2, padding=1),
            )
        )
        self.scratch = _Scratch(widths, channels)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Map four feature maps (B, width, R, C) to depth and sky, each (B, 14 R, 14 C)."""
        rows, columns = maps[0].shape[-2:]
        levels = [
            resize(project(features))
            for features, project, resize in zip(maps, self.projects, self.resize_layers, strict=True)
        ]
        scratch = self.scratch
        one, two, three, four = (
            layer(level)
            for layer, level in zip(
                (scratch.layer1_rn, scratch.layer2_rn, scratch.layer3_rn, scratch.layer4_rn), levels, strict=True
            )
        )
        fused = scratch.refinenet4(four, None, three.shape[-2:])
        fused = scratch.refinenet3(fused, three, two.shape[-2:])
        fused = scratch.refinenet2(fused, two, one.shape[-2:])
        fused = scratch.refinenet1(fused, one, (2 * one.shape[-2], 2 * one.shape[-1]))
        size = (rows * PATCH_SIZE, columns * PATCH_SIZE)
        fused = F.interpolate(scratch.output_conv1(fused), size, mode="bilinear", align_corners=True)
        return scratch.output_conv2(fused).exp().squeeze(1), scratch.sky_output_conv2(fused).relu().squeeze(1)


class _Backbone(nn.Module):
    """Holds the transformer under its name in the checkpoint."""

    def __init__(self, pretrained: dinov2.DINOv2) -> None:
        super().__init__()
        self.pretrained = pretrained


class DepthAnything3(nn.Module):
    """Depth Anything 3 Metric: depth for a canonical focal length."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Create the network that a checkpoint's shapes belong to.

        Raises:
            ValueError: They are not those of this network.
            KeyError: A tensor is missing.
        """
        super().__init__()
        self.backbone = _Backbone(dinov2.from_shapes(shapes, "backbone.pretrained."))
        # The features of four blocks, at the end of each quarter; the first is one later in the released network of 24.
        num_blocks = len(self.backbone.pretrained.blocks)
        quarter = num_blocks // 4
        self.blocks = (4, 11, 17, 23) if num_blocks == 24 else tuple(quarter * number - 1 for number in range(1, 5))
        widths = [shapes[f"head.projects.{level}.weight"][0] for level in range(4)]
        channels = shapes["head.scratch.output_conv1.weight"][1]
        self.head = _DPT(shapes["head.projects.0.weight"][1], widths, channels)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Estimate the depth of an image.

        Args:
            pixels: (B, 3, 14 R, 14 C), normalised as `sharp_cog.estimators.estimate.normalized` does.

        Returns:
            Depth in metres if the focal length were 300 pixels, and the output for the sky, each (B, 14 R, 14 C).
        """
        maps, _ = self.backbone.pretrained(pixels, self.blocks)
        depth, sky = self.head(maps)
        return depth, sky


@dataclass(frozen=True, slots=True)
class DepthAnything3Estimator:
    """Depth Anything 3 Metric as an estimator."""

    model: DepthAnything3
    device: torch.device

    @torch.inference_mode()
    def __call__(self, source: SourceImage) -> Estimate:
        """Estimate the depth of an image, whose longer side is resized to 504 pixels.

        Depth is proportional to the focal length, which the network does not know.
        """
        camera = source.camera
        factor = _LONG_SIDE_PX / max(camera.width, camera.height)
        width, height = (
            max(PATCH_SIZE, round(side * factor / PATCH_SIZE) * PATCH_SIZE) for side in (camera.width, camera.height)
        )
        pixels = F.interpolate(pixels_of(source, self.device), (height, width), mode="bicubic", antialias=True)
        depth, sky = self.model(normalized(pixels.clamp(0.0, 1.0)))
        depth = with_far_sky(depth, sky)
        # The sides are rounded to whole patches, each on its own, so the focal length is the mean of both axes.
        focal_length_px = camera.focal_length_px * (width / camera.width + height / camera.height) / 2
        depth = resized(
            depth.unsqueeze(1) * (focal_length_px / _CANONICAL_FOCAL_LENGTH_PX), camera.height, camera.width
        )
        return Estimate(depth_m=depth[0, 0].float().cpu().numpy())


def with_far_sky(depth: Tensor, sky: Tensor) -> Tensor:
    """Return depth with the sky as far as the 99 % quantile of everything else; both are (B, H, W)."""
    is_sky = sky >= _SKY_THRESHOLD
    if min(int(is_sky.sum()), int((~is_sky).sum())) <= _MIN_PIXELS:
        return depth
    return torch.where(is_sky, torch.quantile(depth[~is_sky].float(), _FAR_QUANTILE), depth)


def from_checkpoint(state: Mapping[str, Tensor]) -> DepthAnything3:
    """Create the network from the tensors of the checkpoint's file.

    Raises:
        ValueError: It is no checkpoint of this network.
    """
    used = {name.removeprefix("model."): tensor for name, tensor in state.items() if not name.endswith("mask_token")}
    try:
        with torch.device("meta"):
            model = DepthAnything3({name: tuple(tensor.shape) for name, tensor in used.items()})
    except (KeyError, IndexError) as error:
        raise ValueError(f"it is no checkpoint of Depth Anything 3 Metric ({error})") from error
    fill(model, used)
    return model

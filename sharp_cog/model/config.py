"""Sizes of the network: those of Apple's released model, and those of a narrow copy of it for tests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

IMAGE_SIZE = 1536
"""Width and height in pixels of the square image that Apple's network takes; every image is stretched to it."""

NUM_LAYERS = 2
"""Number of layers of depth, and of Gaussians: the front surface, and the surface hidden behind it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTConfig:
    """Sizes of one vision transformer on tiles of 384 x 384 pixels (ViT-L/16 by default).

    Attributes:
        grid_size: Patches of 16 pixels along a side of a tile.
        width: Channels of a token.
        num_blocks: Number of transformer blocks.
        num_heads: Attention heads; divides `width`.
        intermediate_blocks: 0-based blocks after which the patch encoder also yields the raw residual stream.
    """

    grid_size: int = 24
    width: int = 1024
    num_blocks: int = 24
    num_heads: int = 16
    intermediate_blocks: tuple[int, int] = (5, 11)

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SharpConfig:
    """Sizes of the whole network; the defaults are those of the released checkpoint.

    Attributes:
        vit: Sizes of both vision transformers, the patch encoder and the image encoder.
        encoder_channels: Channels of the five encoder feature maps, finest (768 x 768) first.
        monodepth_width: Channels of the decoder before the disparity head.
        disparity_hidden: Channels of the two hidden convolutions of the disparity head.
        feature_width: Channels of the decoder before the Gaussian heads.
        feature_hidden: Channels inside the residual blocks of the Gaussian heads.
        feature_channels: Channels of the texture and the geometry features.
    """

    vit: ViTConfig = ViTConfig()
    encoder_channels: tuple[int, int, int, int, int] = (256, 256, 512, 1024, 1024)
    monodepth_width: int = 256
    disparity_hidden: tuple[int, int] = (128, 32)
    feature_width: int = 128
    feature_hidden: int = 64
    feature_channels: int = 32

    @property
    def image_size(self) -> int:
        """Width and height in pixels of the square image that the network takes: four tiles of 16-pixel patches."""
        return 4 * 16 * self.vit.grid_size

    @classmethod
    def released(cls) -> SharpConfig:
        """Apple's checkpoint `sharp_2572gikvuh.pt`: 702 M parameters."""
        return cls()

    @classmethod
    def tiny(cls, *, grid_size: int = 24) -> SharpConfig:
        """Return the same graph with narrow layers, for tests; a smaller grid makes the image smaller too."""
        return cls(
            vit=ViTConfig(grid_size=grid_size, width=64, num_blocks=4, num_heads=4, intermediate_blocks=(0, 1)),
            encoder_channels=(16, 16, 32, 64, 64),
            monodepth_width=16,
            disparity_hidden=(8, 32),
            feature_width=16,
            feature_hidden=8,
            feature_channels=8,
        )

    @classmethod
    def matching(cls, shapes: Mapping[str, tuple[int, ...]]) -> SharpConfig:
        """Return the configuration that a checkpoint's shapes belong to: `tiny` by its token width, else `released`."""
        # (1, 1 + grid_size^2, width). The shapes come from a file of the user's, so they may be anything; a wrong guess
        # is refused when the checkpoint is loaded strictly.
        embedding = shapes.get("monodepth_model.monodepth_predictor.encoder.patch_encoder.pos_embed", (0,))
        if len(embedding) == 3 and embedding[-1] == cls.tiny().vit.width:
            return cls.tiny(grid_size=math.isqrt(max(0, embedding[1] - 1)))
        return cls.released()

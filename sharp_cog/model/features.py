"""Feature model and prediction head: turn encoder features and base Gaussians into deltas."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sharp_cog.model.composer import NUM_ATTRIBUTES
from sharp_cog.model.config import NUM_LAYERS, SharpConfig
from sharp_cog.model.decoder import CastingConv2d, FusionBlock, MultiresDecoder, NormResidualBlock

_INPUT_CHANNELS = 5
"""Three channels of colour and one of disparity for each of the two layers."""
_NUM_GROUPS = 8
_NUM_GEOMETRY_ATTRIBUTES = 3


class SkipConvBackbone(nn.Module):
    """Brings the base Gaussians' colour and disparity to the resolution of the grid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = CastingConv2d(_INPUT_CHANNELS, width, kernel_size=2, stride=2)

    def forward(self, feature_input: Tensor) -> Tensor:
        """Map (B, 5, H, W) to (B, width, H / 2, W / 2)."""
        skip: Tensor = self.conv(feature_input)
        return skip


class FeatureModel(nn.Module):
    """Decodes the encoder's features a second time, fuses them with the base Gaussians, and applies two heads."""

    def __init__(self, config: SharpConfig) -> None:
        super().__init__()
        self.decoder = MultiresDecoder(config.encoder_channels, config.feature_width)
        self.image_encoder = SkipConvBackbone(config.feature_width)
        self.fusion = FusionBlock(config.feature_width, doubles=False)
        self.texture_head = _head(config)
        self.geometry_head = _head(config)

    def forward(self, feature_input: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features for the prediction head.

        Args:
            feature_input: (B, 5, S, S) float32, from the initializer.
            decoded: (B, feature_width, S / 2, S / 2), the output of `decoder` for the five encoder feature maps.

        Returns:
            Texture and geometry features, each (B, feature_channels, S / 2, S / 2).
        """
        # The skip connection is computed in float32, as its input holds disparity, and rounded only for the sum.
        fused = self.fusion(decoded, self.image_encoder(feature_input).to(decoded.dtype))
        return self.texture_head(fused), self.geometry_head(fused)


class PredictionHead(nn.Module):
    """Predicts deltas from features: three attributes from geometry and eleven from texture, for each layer."""

    def __init__(self, config: SharpConfig) -> None:
        super().__init__()
        num_texture_attributes = NUM_ATTRIBUTES - _NUM_GEOMETRY_ATTRIBUTES
        channels = config.feature_channels
        self.geometry_prediction_head = CastingConv2d(channels, _NUM_GEOMETRY_ATTRIBUTES * NUM_LAYERS, kernel_size=1)
        self.texture_prediction_head = CastingConv2d(channels, num_texture_attributes * NUM_LAYERS, kernel_size=1)

    def forward(self, texture_features: Tensor, geometry_features: Tensor) -> Tensor:
        """Map two feature maps (B, feature_channels, h, w) to (B, 14, 2, h, w), attribute-major."""
        geometry = self.geometry_prediction_head(geometry_features)
        texture = self.texture_prediction_head(texture_features)
        # Attribute-major: the two layers of one attribute are neighbours among the 28 channels.
        delta: Tensor = torch.cat([geometry, texture], dim=1).unflatten(1, (NUM_ATTRIBUTES, NUM_LAYERS))
        return delta


def _head(config: SharpConfig) -> nn.Sequential:
    width, hidden = config.feature_width, config.feature_hidden
    return nn.Sequential(
        NormResidualBlock(width, width, hidden=hidden, num_groups=_NUM_GROUPS),
        NormResidualBlock(width, width, hidden=hidden, num_groups=_NUM_GROUPS),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, config.feature_channels, kernel_size=1),
        nn.ReLU(inplace=True),
    )

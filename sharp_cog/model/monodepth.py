"""Monodepth: predicts encoder features and two layers of disparity from an image alone."""

from __future__ import annotations

from torch import Tensor, nn

from sharp_cog.model.config import NUM_LAYERS, SharpConfig
from sharp_cog.model.decoder import CastingConv2d, MultiresDecoder
from sharp_cog.model.pyramid import PyramidEncoder

MIN_DISPARITY = 1e-4
"""Least disparity: depth ends at 10,000 m where the focal length is the width of the image."""

MAX_DISPARITY = 1e4
"""Largest disparity: depth begins at 0.1 mm there."""


class MonodepthPredictor(nn.Module):
    """Encoder, decoder and disparity head of monodepth. `MonodepthModel` runs them."""

    def __init__(self, config: SharpConfig) -> None:
        super().__init__()
        wide, narrow = config.disparity_hidden
        self.encoder = PyramidEncoder(config)
        self.decoder = MultiresDecoder(config.encoder_channels, config.monodepth_width)
        self.head = nn.Sequential(
            nn.Conv2d(config.monodepth_width, wide, kernel_size=3, padding=1),
            nn.ConvTranspose2d(wide, wide, kernel_size=2, stride=2),
            nn.Conv2d(wide, narrow, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            # `sharp_cog.runtime.prepare` keeps this layer in float32, and with it the disparity.
            CastingConv2d(narrow, NUM_LAYERS, kernel_size=1),
            # Disparity is never negative. A zero, infinitely far, is left to the clamp in `depth_from_disparity`.
            nn.ReLU(inplace=True),
        )


class MonodepthModel(nn.Module):
    """Holds the predictor under its name in the checkpoint."""

    def __init__(self, config: SharpConfig) -> None:
        super().__init__()
        self.monodepth_predictor = MonodepthPredictor(config)

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Predict features and disparity.

        Args:
            image: (B, 3, S, S), RGB in [0, 1].

        Returns:
            Five encoder feature maps, finest first, and the disparity (B, 2, S, S), front layer first, non-negative.
        """
        predictor = self.monodepth_predictor
        features = predictor.encoder(image)
        return features, predictor.head(predictor.decoder(features))


def depth_from_disparity(disparity: Tensor, disparity_factor: Tensor) -> Tensor:
    """Convert disparity (B, 2, H, W) to depth in metres, given the focal length over the image's width, (B,)."""
    return disparity_factor.view(-1, 1, 1, 1) / disparity.clamp(MIN_DISPARITY, MAX_DISPARITY)

"""Depth alignment: a U-Net that compares monodepth with an external depth map and predicts a scale for each pixel.

Its layers have the same sizes in every variant of the network.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from sharp_cog.model.decoder import NormResidualBlock

_WIDTHS = (16, 32, 64, 128, 256)
_NUM_GROUPS = 4
_MIN_DEPTH_M = 1e-4
"""Depth in metres from which on disparity no longer grows, so that a depth of zero does not make it infinite."""


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Sequential(
            nn.Conv2d(2, _WIDTHS[0], kernel_size=3, padding=1), nn.GroupNorm(_NUM_GROUPS, _WIDTHS[0]), nn.ReLU()
        )
        self.convs_down = nn.ModuleList(
            # Half the resolution and twice the channels, from 16 at full size to 256 at a sixteenth of the width.
            nn.Sequential(nn.AvgPool2d(2), _block(narrow, wide), _block(wide, wide))
            for narrow, wide in itertools.pairwise(_WIDTHS)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.conv_in(x)]
        for down in self.convs_down:
            maps.append(down(maps[-1]))
        return maps


class _Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        # From the second step on, the input is the upsampled map beside the encoder's map of the same size, which
        # doubles its channels. The last pair goes into `conv_out`.
        in_widths = (_WIDTHS[-1], *(2 * width for width in _WIDTHS[-2:0:-1]))
        self.convs_up = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest"), _block(wide, narrow), _block(narrow, narrow))
            for wide, narrow in zip(in_widths, _WIDTHS[-2::-1], strict=True)
        )
        self.conv_out = nn.Sequential(
            nn.GroupNorm(_NUM_GROUPS, 2 * _WIDTHS[0]),
            nn.ReLU(),
            nn.Conv2d(2 * _WIDTHS[0], _WIDTHS[0], kernel_size=1),
            nn.GroupNorm(_NUM_GROUPS, _WIDTHS[0]),
            nn.ReLU(),
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = maps[-1]
        # The coarsest map is the start, and the others are joined from coarse to fine.
        for up, skip in zip(self.convs_up, maps[-2::-1], strict=True):
            x = torch.cat([up(x), skip], dim=1)
        y: Tensor = self.conv_out(x)
        return y


class ScaleMapEstimator(nn.Module):
    """The U-Net of the depth alignment."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _Encoder()
        self.decoder = _Decoder()
        self.conv_out = nn.Conv2d(_WIDTHS[0], 1, kernel_size=1)

    def forward(self, monodepth_m: Tensor, depth_m: Tensor) -> Tensor:
        """Map two depth maps (B, 1, S, S) in metres to a positive factor of the same shape."""
        disparities = [1.0 / depth.clamp(min=_MIN_DEPTH_M) for depth in (monodepth_m, depth_m)]
        # An exponential keeps the factor positive and treats larger and smaller alike.
        return torch.exp(self.conv_out(self.decoder(self.encoder(torch.cat(disparities, dim=1)))))


class DepthAlignment(nn.Module):
    """Holds the estimator under its name in the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.scale_map_estimator = ScaleMapEstimator()

    def forward(self, monodepth_m: Tensor, depth_m: Tensor) -> Tensor:
        """Predict the factor that brings monodepth to the external depth.

        Args:
            monodepth_m: (B, 2, S, S), metres; only the front layer is compared.
            depth_m: (B, 1, S, S), external depth in metres.

        Returns:
            (B, 1, S, S), the factor for both layers of monodepth.
        """
        scale_map: Tensor = self.scale_map_estimator(monodepth_m[:, :1], depth_m)
        return scale_map


def _block(in_channels: int, out_channels: int) -> NormResidualBlock:
    return NormResidualBlock(in_channels, out_channels, hidden=out_channels // 2, num_groups=_NUM_GROUPS)

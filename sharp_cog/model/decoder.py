"""Multi-resolution decoder: fuses five feature maps, from the coarsest to the finest."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class CastingConv2d(nn.Conv2d):
    """Convolution that converts its input to the type of its weights. It stands where two precisions meet."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x of any float type; shapes are those of `nn.Conv2d`."""
        return super().forward(x.to(self.weight.dtype))


class ResidualConvUnit(nn.Module):
    """Residual block: x + conv3x3(relu(conv3x3(relu(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            # Not in place, since the sum still needs the input. The second one acts on a new tensor.
            nn.ReLU(),
            nn.Conv2d(width, width, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, kernel_size=3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to (B, width, H, W)."""
        # The sum is written into the branch's output, which nobody else holds. At full resolution another map would
        # take hundreds of megabytes.
        y: Tensor = self.residual(x).add_(x)
        return y


class FusionBlock(nn.Module):
    """Adds a refined skip connection, refines the sum and doubles the resolution."""

    def __init__(self, width: int, *, doubles: bool) -> None:
        super().__init__()
        self.resnet1 = ResidualConvUnit(width)
        self.resnet2 = ResidualConvUnit(width)
        self.deconv = (
            nn.ConvTranspose2d(width, width, kernel_size=2, stride=2, bias=False) if doubles else nn.Identity()
        )
        # Declared as a module, since `sharp_cog.runtime.prepare` folds the convolution and leaves an identity.
        self.out_conv: nn.Module = nn.Conv2d(width, width, kernel_size=1)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Map (B, width, H, W) and a skip of the same shape to (B, width, 2 H, 2 W), or H, W without doubling."""
        if skip is not None:
            x = self.resnet1(skip).add_(x)
        fused: Tensor = self.out_conv(self.deconv(self.resnet2(x)))
        return fused


class MultiresDecoder(nn.Module):
    """Projects each feature map to one width and fuses them, coarsest first."""

    def __init__(self, in_channels: Sequence[int], width: int) -> None:
        super().__init__()
        finest = in_channels[0]
        self.convs = nn.ModuleList(
            [
                # The checkpoint has no parameters for this layer of monodepth's decoder, where the widths agree.
                nn.Identity() if finest == width else nn.Conv2d(finest, width, kernel_size=1, bias=False),
                *(nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False) for channels in in_channels[1:]),
            ]
        )
        self.fusions = nn.ModuleList(FusionBlock(width, doubles=level > 0) for level in range(len(in_channels)))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Fuse feature maps, finest first, each half as wide as the one before, to (B, width, H, W) of the finest."""
        coarsest = len(features) - 1
        dtype = next(self.parameters()).dtype  # The encoder may compute in another type than this decoder.
        fused: Tensor = self.fusions[coarsest](self.convs[coarsest](features[coarsest].to(dtype)))
        for level in range(coarsest - 1, -1, -1):
            fused = self.fusions[level](fused, self.convs[level](features[level].to(dtype)))
        return fused


class NormResidualBlock(nn.Module):
    """Residual block with group norms: x (or a 1x1 shortcut of it) + conv3x3(relu(GN(conv3x3(relu(GN(x))))))."""

    def __init__(self, in_channels: int, out_channels: int, *, hidden: int, num_groups: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.GroupNorm(num_groups, in_channels),
            # In place, since the norm's output is new; the input itself is still needed for the shortcut.
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, hidden, kernel_size=3, padding=1),
            nn.GroupNorm(num_groups, hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, out_channels, kernel_size=3, padding=1),
        )
        self.shortcut = (
            nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, kernel_size=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        y: Tensor = self.residual(x).add_(self.shortcut(x))
        return y

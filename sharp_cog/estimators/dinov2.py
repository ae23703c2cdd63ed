"""DINOv2, the vision transformer inside of MoGe-2 and Depth Anything 3 (arXiv 2304.07193).

Attribute names are those of both checkpoints. The blocks are those of SHARP's transformers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharp_cog.model.config import ViTConfig
from sharp_cog.model.vit import Block, LayerNorm

PATCH_SIZE = 14
"""Width and height of a patch in pixels."""

_HEAD_WIDTH = 64
"""Channels of an attention head, in all sizes of DINOv2."""

_LAYER_NORM_EPS = 1e-6

# DINOv2 was trained with positions that were interpolated by a slightly larger factor, and expects the same ones.
_POSITION_OFFSET = 0.1
"""Patches that are added to the size when positions are interpolated."""


class _PatchEmbed(nn.Module):
    """Holds the projection of patches under its name in the checkpoints."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)


class DINOv2(nn.Module):
    """Turns an image of any size into feature maps of one cell for each patch of 14 x 14 pixels."""

    def __init__(self, *, width: int, num_blocks: int, grid_size: int) -> None:
        """Create the transformer.

        Args:
            width: Channels of a token.
            num_blocks: Number of transformer blocks.
            grid_size: Patches along a side of the image that the positions were trained for.
        """
        super().__init__()
        self.grid_size = grid_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, grid_size**2 + 1, width))
        self.patch_embed = _PatchEmbed(width)
        config = ViTConfig(grid_size=grid_size, width=width, num_blocks=num_blocks, num_heads=width // _HEAD_WIDTH)
        self.blocks = nn.ModuleList(Block(config) for _ in range(num_blocks))
        self.norm = LayerNorm(width, eps=_LAYER_NORM_EPS)

    def forward(self, pixels: Tensor, blocks: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Encode an image.

        Args:
            pixels: (B, 3, 14 R, 14 C) float32, normalised as `sharp_cog.estimators.estimate.normalized` does.
            blocks: 0-based blocks, in ascending order, whose normalised outputs are returned.

        Returns:
            A map (B, width, R, C) for each of `blocks`, and the class token (B, width) after the last of them.
        """
        patches = self.patch_embed.proj(pixels)
        rows, columns = patches.shape[-2:]
        tokens = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        tokens = tokens + self._positions(rows, columns)
        outputs = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in blocks:
                outputs.append(self.norm(tokens))
        maps = [tokens[:, 1:].transpose(1, 2).unflatten(2, (rows, columns)) for tokens in outputs]
        return maps, outputs[-1][:, 0]

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Return the embedding of the class token and of the patches, (1, 1 + rows * columns, width)."""
        if rows == columns == self.grid_size:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].unflatten(1, (self.grid_size, self.grid_size)).permute(0, 3, 1, 2)
        factors = [(size + _POSITION_OFFSET) / self.grid_size for size in (rows, columns)]
        patches = F.interpolate(grid, scale_factor=factors, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


def from_shapes(shapes: dict[str, tuple[int, ...]], prefix: str) -> DINOv2:
    """Create the transformer that a checkpoint's shapes belong to.

    Args:
        shapes: Shapes of the checkpoint's tensors, by name.
        prefix: Start of the transformer's names, with the dot.

    Raises:
        ValueError: The checkpoint has no such transformer.
    """
    embedding = shapes.get(f"{prefix}pos_embed", ())
    numbers = [
        name.removeprefix(f"{prefix}blocks.").split(".")[0] for name in shapes if name.startswith(f"{prefix}blocks.")
    ]
    if len(embedding) != 3 or not numbers or not all(number.isdigit() for number in numbers):
        raise ValueError(f"it has no DINOv2 under {prefix}")
    width = embedding[2]
    if width % _HEAD_WIDTH or f"{prefix}blocks.0.mlp.fc1.weight" not in shapes:
        raise ValueError(f"the DINOv2 under {prefix} has another form than the small, base and large ones")
    return DINOv2(width=width, num_blocks=1 + max(map(int, numbers)), grid_size=math.isqrt(max(0, embedding[1] - 1)))

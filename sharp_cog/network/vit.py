"""Vision transformer: tiles of 384 x 384 pixels in, feature maps of 24 x 24 cells out.

Attribute names are those of the checkpoint (timm's). The classifier head that the checkpoint also holds has no
place here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharp_cog.network.config import ViTConfig

TILE_SIZE = 384
PATCH_SIZE = 16
GRID_SIZE = TILE_SIZE // PATCH_SIZE
_MLP_RATIO = 4
_LAYER_NORM_EPS = 1e-6


class PatchEmbed(nn.Module):
    """Cuts a tile into patches and projects each to a token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, tiles: Tensor) -> Tensor:
        """(B, 3, 384, 384) -> (B, 576, width), row-major."""
        tokens: Tensor = self.proj(tiles).flatten(2).transpose(1, 2)
        return tokens


class LayerScale(nn.Module):
    """A learned gain for each channel of a residual branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, residual: Tensor, branch: Tensor) -> Tensor:
        """Adds the scaled branch to the residual stream, both (B, T, width)."""
        return torch.addcmul(residual, branch, self.gamma)


class Attention(nn.Module):
    """Multi-head self-attention with one linear layer for q, k and v, in that order."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, width)."""
        batch, num_tokens, width = tokens.shape
        qkv = self.qkv(tokens).view(batch, num_tokens, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)
        mixed: Tensor = self.proj(attended.transpose(1, 2).reshape(batch, num_tokens, width))
        return mixed


class MLP(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, _MLP_RATIO * width)
        self.fc2 = nn.Linear(_MLP_RATIO * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, width)."""
        mixed: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return mixed


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale on both branches."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=_LAYER_NORM_EPS)
        self.attn = Attention(config.width, config.num_heads)
        self.ls1 = LayerScale(config.width)
        self.norm2 = nn.LayerNorm(config.width, eps=_LAYER_NORM_EPS)
        self.mlp = MLP(config.width)
        self.ls2 = LayerScale(config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, width)."""
        tokens = self.ls1(tokens, self.attn(self.norm1(tokens)))
        refined: Tensor = self.ls2(tokens, self.mlp(self.norm2(tokens)))
        return refined


class ViT(nn.Module):
    """Vision transformer with a class token, which takes part and is dropped at the end."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, GRID_SIZE**2 + 1, config.width))
        self.patch_embed = PatchEmbed(config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.width, eps=_LAYER_NORM_EPS)

    def forward(self, tiles: Tensor, intermediate_blocks: tuple[int, ...] = ()) -> tuple[Tensor, list[Tensor]]:
        """Encodes tiles.

        Args:
            tiles: (B, 3, 384, 384), in [-1, 1].
            intermediate_blocks: 0-based blocks whose raw residual stream, without a norm, is returned too.

        Returns:
            The normalised output (B, width, 24, 24), and as many intermediate ones of the same shape.
        """
        tokens = self.patch_embed(tiles)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + self.pos_embed
        intermediates = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in intermediate_blocks:
                intermediates.append(_to_map(tokens))
        return _to_map(self.norm(tokens)), intermediates


def _to_map(tokens: Tensor) -> Tensor:
    """(B, 1 + 576, width) with the class token first -> (B, width, 24, 24)."""
    features: Tensor = tokens[:, 1:].transpose(1, 2).unflatten(2, (GRID_SIZE, GRID_SIZE))
    return features

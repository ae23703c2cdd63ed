"""Vision transformer: turns tiles of 384 x 384 pixels into feature maps of 24 x 24 cells.

Attribute names are those of the checkpoint, which come from timm. The checkpoint's classifier head is left out. In the
shapes below, g is the configuration's `grid_size`, 24 in the released network: a tile has g x g patches of 16 x 16 px.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharp_cog.model.config import ViTConfig

PATCH_SIZE = 16
"""Width and height of a patch in pixels."""

_MLP_RATIO = 4
_LAYER_NORM_EPS = 1e-6


class Normalize(nn.Module):
    """Maps [0, 1] to [-1, 1]. `sharp_cog.runtime.prepare` folds it into the convolution that follows."""

    def forward(self, tiles: Tensor) -> Tensor:
        """Map a tensor of any shape."""
        return 2.0 * tiles - 1.0


class PatchEmbed(nn.Module):
    """Cuts a tile into patches and projects each to a token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.normalize: nn.Module = Normalize()
        self.proj = nn.Conv2d(3, width, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, tiles: Tensor) -> Tensor:
        """Map (B, 3, 16 g, 16 g) in [0, 1] to (B, g * g, width), row-major."""
        tokens: Tensor = self.proj(self.normalize(tiles)).flatten(2).transpose(1, 2)
        return tokens


class LayerScale(nn.Module):
    """Learned gain for each channel of a residual branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, branch: Tensor) -> Tensor:
        """Map (B, T, width) to (B, T, width)."""
        return branch * self.gamma


class LayerNorm(nn.LayerNorm):
    """Normalises the float32 residual stream and converts it for the next layer.

    Attributes:
        dtype_out: Type in which the next layer computes.
    """

    dtype_out = torch.float32

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, T, width) float32 to (B, T, width) of `dtype_out`."""
        return super().forward(tokens).to(self.dtype_out)


class Attention(nn.Module):
    """Multi-head self-attention with one linear layer for q, k and v, in that order.

    Attributes:
        is_tiled: Whether to attend tile by tile, which is faster on some CPUs; `sharp_cog.runtime.prepare` decides.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.is_tiled = False
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, T, width) to (B, T, width)."""
        batch, num_tokens, width = tokens.shape
        # (B, T, 3, heads, C), then query, key and value apart, each (B, heads, T, C).
        qkv = self.qkv(tokens).view(batch, num_tokens, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = (attend_by_tile if self.is_tiled else attend)(query, key, value)
        mixed: Tensor = self.proj(attended.transpose(1, 2).reshape(batch, num_tokens, width))
        return mixed


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute the attention of (B, heads, T, C) by the fastest of torch's exact kernels."""
    return F.scaled_dot_product_attention(query, key, value)


def attend_by_tile(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute the same as `attend`, one tile after the other, so that its scores (16 x 577 x 577) stay in the caches.

    On CPUs with bfloat16 instructions but without AMX, this is twice as fast: torch's kernel makes little use of such
    instructions. It is as close to float32, since rounding the scores adds nothing to the rounding of queries and keys;
    the softmax computes in float32 inside.
    """
    # The queries are scaled in place of the scores, of which there are nine times as many.
    scale = query.shape[-1] ** -0.5
    attended = torch.empty_like(query)
    for index in range(len(query)):
        scores = torch.matmul(query[index] * scale, key[index].transpose(-1, -2))
        torch.matmul(scores.softmax(dim=-1), value[index], out=attended[index])
    return attended


class MLP(nn.Module):
    """Multilayer perceptron: two linear layers around an exact GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, _MLP_RATIO * width)
        self.act: nn.Module = nn.GELU()
        self.fc2 = nn.Linear(_MLP_RATIO * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, T, width) to (B, T, width)."""
        mixed: Tensor = self.fc2(self.act(self.fc1(tokens)))
        return mixed


class Block(nn.Module):
    """Pre-norm transformer block with LayerScale on both branches."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(config.width, eps=_LAYER_NORM_EPS)
        self.attn = Attention(config.width, config.num_heads)
        self.ls1: nn.Module = LayerScale(config.width)
        self.norm2 = LayerNorm(config.width, eps=_LAYER_NORM_EPS)
        self.mlp = MLP(config.width)
        self.ls2: nn.Module = LayerScale(config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Add both branches to the residual stream (B, T, width) float32, in place, and return it."""
        # In place, as the stream of 35 tiles takes 83 MB. `ViT.forward` creates it by a sum, so nobody else holds it.
        tokens.add_(self.ls1(self.attn(self.norm1(tokens))))
        return tokens.add_(self.ls2(self.mlp(self.norm2(tokens))))


class ViT(nn.Module):
    """Vision transformer with a class token, which takes part in the attention and is dropped at the end."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.grid_size = config.grid_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid_size**2 + 1, config.width))
        self.patch_embed = PatchEmbed(config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.norm = LayerNorm(config.width, eps=_LAYER_NORM_EPS)

    def forward(self, tiles: Tensor, intermediate_blocks: tuple[int, ...] = ()) -> tuple[Tensor, list[Tensor]]:
        """Encode tiles.

        Args:
            tiles: (B, 3, 16 g, 16 g) float32, in [0, 1]; or smaller squares of whole patches, which get the positions
                of a tile's upper left.
            intermediate_blocks: 0-based blocks after which the raw residual stream, without a norm, is returned too.

        Returns:
            The normalised output (B, width, g, g), and a map of the same shape for each of `intermediate_blocks`;
            channels last.
        """
        tokens = self.patch_embed(tiles)
        # `_positions` gets the number of patches, since `tokens` is still without the class token there.
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + self._positions(
            tokens.shape[1]
        )
        intermediates = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in intermediate_blocks:
                # A copy, since the next blocks change the residual stream in place.
                intermediates.append(_to_map(tokens.to(self.norm.dtype_out, copy=True)))
        return _to_map(self.norm(tokens)), intermediates

    def _positions(self, num_patches: int) -> Tensor:
        """Return the embedding of the class token and of the patches, (1, 1 + num_patches, width)."""
        if num_patches == self.grid_size**2:
            return self.pos_embed
        # The small image of the self-check has fewer patches. Which positions they get does not matter there.
        size = math.isqrt(num_patches)
        grid = self.pos_embed[:, 1:].unflatten(1, (self.grid_size, self.grid_size))[:, :size, :size]
        return torch.cat([self.pos_embed[:, :1], grid.flatten(1, 2)], dim=1)


def _to_map(tokens: Tensor) -> Tensor:
    """Map (B, 1 + g * g, width), with the class token first, to (B, width, g, g)."""
    size = math.isqrt(tokens.shape[1] - 1)
    features: Tensor = tokens[:, 1:].transpose(1, 2).unflatten(2, (size, size))
    return features

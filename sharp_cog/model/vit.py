"""Vision transformer: tiles of 384 x 384 pixels in, feature maps of 24 x 24 cells out.

Attribute names are those of the checkpoint (timm's). The classifier head that the checkpoint also holds has no
place here.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharp_cog.model.config import ViTConfig

PATCH_SIZE = 16
_MLP_RATIO = 4
_LAYER_NORM_EPS = 1e-6


class Normalize(nn.Module):
    """[0, 1] to [-1, 1]."""

    def forward(self, tiles: Tensor) -> Tensor:
        """Any shape."""
        return 2.0 * tiles - 1.0


class PatchEmbed(nn.Module):
    """Cuts a tile into patches and projects each to a token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.normalize: nn.Module = Normalize()
        self.proj = nn.Conv2d(3, width, kernel_size=PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, tiles: Tensor) -> Tensor:
        """(B, 3, 384, 384) in [0, 1] -> (B, 576, width), row-major."""
        tokens: Tensor = self.proj(self.normalize(tiles)).flatten(2).transpose(1, 2)
        return tokens


class LayerScale(nn.Module):
    """A learned gain for each channel of a residual branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, branch: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, width)."""
        return branch * self.gamma


class LayerNorm(nn.LayerNorm):
    """Normalises the float32 residual stream and hands it on in the type that the next layer works in.

    Attributes:
        dtype_out: That type.
    """

    dtype_out = torch.float32

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, width) float32 -> (B, T, width) of `dtype_out`."""
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
        """(B, T, width) -> (B, T, width)."""
        batch, num_tokens, width = tokens.shape
        qkv = self.qkv(tokens).view(batch, num_tokens, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = (attend_by_tile if self.is_tiled else attend)(query, key, value)
        mixed: Tensor = self.proj(attended.transpose(1, 2).reshape(batch, num_tokens, width))
        return mixed


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of (B, heads, T, C), by the fastest of torch's kernels that is exact."""
    return F.scaled_dot_product_attention(query, key, value)


def attend_by_tile(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same on a CPU whose bfloat16 instructions torch's own kernel makes little use of: all but AMX.

    Tile by tile, so that the scores of one (16 x 577 x 577) stay in the caches; the softmax is float32 inside. Twice as
    fast, and as close to float32: rounding the scores adds nothing to what rounding queries and keys does.
    """
    scale = query.shape[-1] ** -0.5
    attended = torch.empty_like(query)
    for index in range(len(query)):
        scores = torch.matmul(query[index] * scale, key[index].transpose(-1, -2))
        torch.matmul(scores.softmax(dim=-1), value[index], out=attended[index])
    return attended


class MLP(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, _MLP_RATIO * width)
        self.act: nn.Module = nn.GELU()
        self.fc2 = nn.Linear(_MLP_RATIO * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, width) -> (B, T, width)."""
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
        """Adds both branches to the residual stream (B, T, width) float32, in place, and returns it."""
        tokens.add_(self.ls1(self.attn(self.norm1(tokens))))
        return tokens.add_(self.ls2(self.mlp(self.norm2(tokens))))


class ViT(nn.Module):
    """Vision transformer with a class token, which takes part and is dropped at the end."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.grid_size = config.grid_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid_size**2 + 1, config.width))
        self.patch_embed = PatchEmbed(config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.norm = LayerNorm(config.width, eps=_LAYER_NORM_EPS)

    def forward(self, tiles: Tensor, intermediate_blocks: tuple[int, ...] = ()) -> tuple[Tensor, list[Tensor]]:
        """Encodes tiles.

        Args:
            tiles: (B, 3, 384, 384) float32, in [0, 1]; or smaller squares of whole patches, for which the positions
                are those of a tile's upper left.
            intermediate_blocks: 0-based blocks whose raw residual stream, without a norm, is returned too.

        Returns:
            The normalised output (B, width, 24, 24), and as many intermediate ones of the same shape; channels last.
        """
        tokens = self.patch_embed(tiles)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + self._positions(
            tokens.shape[1]
        )
        intermediates = []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index in intermediate_blocks:
                # A copy, as the stream flows on in place.
                intermediates.append(_to_map(tokens.to(self.norm.dtype_out, copy=True)))
        return _to_map(self.norm(tokens)), intermediates

    def _positions(self, num_patches: int) -> Tensor:
        if num_patches == self.grid_size**2:
            return self.pos_embed
        size = math.isqrt(num_patches)
        grid = self.pos_embed[:, 1:].unflatten(1, (self.grid_size, self.grid_size))[:, :size, :size]
        return torch.cat([self.pos_embed[:, :1], grid.flatten(1, 2)], dim=1)


def _to_map(tokens: Tensor) -> Tensor:
    """(B, 1 + 576, width) with the class token first -> (B, width, 24, 24); or the map of a smaller square."""
    size = math.isqrt(tokens.shape[1] - 1)
    features: Tensor = tokens[:, 1:].transpose(1, 2).unflatten(2, (size, size))
    return features

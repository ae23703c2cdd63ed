"""Monodepth encoder: two vision transformers look at a pyramid of overlapping tiles, merged to five feature maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharp_cog.model.config import SharpConfig
from sharp_cog.model.vit import ViT

NUM_TILES = 35
"""Number of tiles of an image: 5 x 5 at full size, 3 x 3 at half, and the whole image at a quarter."""


class PyramidEncoder(nn.Module):
    """Encoder of the monodepth predictor.

    Attributes:
        num_tiles_at_once: Number of tiles that go through the vision transformer together; fewer take less memory.
    """

    def __init__(self, config: SharpConfig) -> None:
        super().__init__()
        width = config.vit.width
        level0, level1, level2, level3, level4 = config.encoder_channels
        self.intermediate_blocks = config.vit.intermediate_blocks
        self.num_tiles_at_once = NUM_TILES
        # Tiles are a quarter of the image wide. The 5 x 5 tiles overlap by a quarter of a tile, and the 3 x 3 tiles of
        # the image at half its size by a half. Merging crops each side that touches a neighbour by half of the overlap,
        # which is 3 and 6 of 24 cells, since a transformer sees least at the edge of its tile.
        self._tile_size = config.image_size // 4
        self._fine_stride, self._fine_crop = self._tile_size * 3 // 4, config.vit.grid_size // 8
        self._middle_stride, self._middle_crop = self._tile_size // 2, config.vit.grid_size // 4
        self.patch_encoder = ViT(config.vit)
        self.image_encoder = ViT(config.vit)
        self.upsample_latent0 = _upsampler(width, level0, num_doublings=3)
        self.upsample_latent1 = _upsampler(width, level1, num_doublings=2)
        self.upsample0 = _upsampler(width, level2, num_doublings=1)
        self.upsample1 = _upsampler(width, level3, num_doublings=1)
        self.upsample2 = _upsampler(width, level4, num_doublings=1)
        self.upsample_lowres = nn.ConvTranspose2d(width, level4, kernel_size=2, stride=2)
        self.fuse_lowres = nn.Conv2d(2 * level4, level4, kernel_size=1)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Encode an image.

        Args:
            image: (B, 3, S, S), RGB in [0, 1].

        Returns:
            Five feature maps, finest first: S / 2, S / 4, S / 8, S / 16 and S / 32 cells wide.
        """
        # The image at full, half and quarter size, cut into 25, 9 and 1 tiles of the transformer's size.
        middle = F.interpolate(image, scale_factor=0.5, mode="bilinear", align_corners=False)
        coarse = F.interpolate(image, scale_factor=0.25, mode="bilinear", align_corners=False)
        fine_tiles = split_tiles(image, self._tile_size, self._fine_stride)
        middle_tiles = split_tiles(middle, self._tile_size, self._middle_stride)
        sizes = [len(fine_tiles), len(middle_tiles), len(coarse)]

        final, intermediates = self._encode_tiles(torch.cat([fine_tiles, middle_tiles, coarse]))
        final_fine, final_middle, final_coarse = final.split(sizes)
        # Only the fine tiles have intermediate maps of use, and the first `sizes[0]` are theirs.
        latent0, latent1 = (merge_tiles(latent[: sizes[0]], len(image), self._fine_crop) for latent in intermediates)
        # A second transformer with weights of its own sees the whole image too.
        global_context, _ = self.image_encoder(coarse)

        lowest = torch.cat([self.upsample2(final_coarse), self.upsample_lowres(global_context)], dim=1)
        return [
            self.upsample_latent0(latent0),
            self.upsample_latent1(latent1),
            self.upsample0(merge_tiles(final_fine, len(image), self._fine_crop)),
            self.upsample1(merge_tiles(final_middle, len(image), self._middle_crop)),
            self.fuse_lowres(lowest),
        ]

    def _encode_tiles(self, tiles: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the patch encoder's output and intermediate maps for all tiles, computed in parts."""
        parts: list[tuple[Tensor, list[Tensor]]] = [
            self.patch_encoder(part, self.intermediate_blocks) for part in tiles.split(self.num_tiles_at_once)
        ]
        if len(parts) == 1:
            return parts[0]
        intermediates = zip(*(intermediate for _, intermediate in parts), strict=True)
        return torch.cat([final for final, _ in parts]), [torch.cat(maps) for maps in intermediates]


def split_tiles(image: Tensor, tile_size: int, stride: int) -> Tensor:
    """Cut a square image into n x n overlapping tiles.

    Args:
        image: (B, C, S, S).
        tile_size: T, width and height of a tile in pixels.
        stride: Pixels from one tile to the next.

    Returns:
        (n * n * B, C, T, T), row-major, the batch innermost.
    """
    # (B, C, n, n, T, T): views into the image, without a copy until the permuted axes are joined.
    tiles = image.unfold(2, tile_size, stride).unfold(3, tile_size, stride)
    return tiles.permute(2, 3, 0, 1, 4, 5).flatten(0, 2)


def merge_tiles(tiles: Tensor, batch: int, crop: int) -> Tensor:
    """Join the feature maps of n x n overlapping tiles, cropped on the sides that touch a neighbour.

    Args:
        tiles: (n * n * B, C, h, h) in the order of `split_tiles`.
        batch: B.
        crop: Number of cells to crop on each side that touches a neighbour.

    Returns:
        (B, C, S, S) with S = n * h - 2 * (n - 1) * crop; channels last.
    """
    num_rows = round((len(tiles) // batch) ** 0.5)
    size = tiles.shape[-1]

    def kept(index: int) -> slice:
        return slice(crop if index > 0 else 0, size - crop if index < num_rows - 1 else size)

    grid = tiles.unflatten(0, (num_rows, num_rows, batch))
    total = num_rows * size - 2 * (num_rows - 1) * crop
    # Written piece by piece into one tensor, since `torch.cat` of rows and columns would copy everything twice.
    merged = tiles.new_empty(batch, tiles.shape[1], total, total).contiguous(memory_format=torch.channels_last)
    for row in range(num_rows):
        for column in range(num_rows):
            part = grid[row, column, :, :, kept(row), kept(column)]
            top, left = (index * (size - 2 * crop) + (crop if index > 0 else 0) for index in (row, column))
            merged[:, :, top : top + part.shape[2], left : left + part.shape[3]] = part
    return merged


def _upsampler(in_channels: int, out_channels: int, *, num_doublings: int) -> nn.Sequential:
    """Return a 1x1 convolution and `num_doublings` transposed 2x2 convolutions, all without bias."""
    doublings = (
        nn.ConvTranspose2d(out_channels, out_channels, kernel_size=2, stride=2, bias=False)
        for _ in range(num_doublings)
    )
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False), *doublings)

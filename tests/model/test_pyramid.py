"""Splitting a picture into overlapping tiles and merging their feature maps."""

from __future__ import annotations

import pytest
import torch

from sharp_cog.model.pyramid import merge_tiles, split_tiles


@pytest.mark.parametrize(("size", "stride", "num_rows"), [(1536, 288, 5), (768, 192, 3), (384, 192, 1)])
def test_tiles_are_row_major_crops_with_the_batch_innermost(size: int, stride: int, num_rows: int) -> None:
    picture = torch.arange(2 * size * size, dtype=torch.float32).view(2, 1, size, size)
    tiles = split_tiles(picture, stride)
    assert tiles.shape == (num_rows * num_rows * 2, 1, 384, 384)
    for row in range(num_rows):
        for column in range(num_rows):
            top, left = row * stride, column * stride
            expected = picture[:, :, top : top + 384, left : left + 384]
            first = 2 * (row * num_rows + column)
            assert torch.equal(tiles[first : first + 2], expected)


@pytest.mark.parametrize(("size", "stride", "crop"), [(1536, 288, 3), (768, 192, 6)])
def test_merging_the_tiles_of_a_smooth_map_gives_the_map_back(size: int, stride: int, crop: int) -> None:
    """A map of cells of 16 pixels, cut like the picture, must come back whole: no seam, no shift."""
    cells = torch.rand(2, 3, size // 16, size // 16, generator=torch.Generator().manual_seed(0))
    pixels = cells.repeat_interleave(16, dim=-1).repeat_interleave(16, dim=-2)
    tiles = split_tiles(pixels, stride)[:, :, ::16, ::16]
    assert torch.equal(merge_tiles(tiles, batch=2, crop=crop), cells)

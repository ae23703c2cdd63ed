"""Splitting an image into overlapping tiles, merging their feature maps, and the sizes of the whole pyramid."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sharp_cog.model.config import SharpConfig
from sharp_cog.model.pyramid import NUM_TILES, PyramidEncoder, merge_tiles, split_tiles
from tests import parity

CUTS = [(1536, 384, 288, 3), (768, 384, 192, 6), (512, 128, 96, 1), (256, 128, 64, 2)]
"""Size of the image, size of a tile, stride, crop in cells: the fine and the middle level at 1536 and at 512 pixels."""


@pytest.mark.parametrize(("size", "tile_size", "stride", "crop"), [*CUTS, (384, 384, 192, 0)])
def test_tiles_are_row_major_crops_with_the_batch_innermost(size: int, tile_size: int, stride: int, crop: int) -> None:
    image = torch.arange(2 * size * size, dtype=torch.float32).view(2, 1, size, size)
    tiles = split_tiles(image, tile_size, stride)
    num_rows = (size - tile_size) // stride + 1
    assert tiles.shape == (num_rows * num_rows * 2, 1, tile_size, tile_size)
    for row in range(num_rows):
        for column in range(num_rows):
            top, left = row * stride, column * stride
            expected = image[:, :, top : top + tile_size, left : left + tile_size]
            first = 2 * (row * num_rows + column)
            assert torch.equal(tiles[first : first + 2], expected)


@pytest.mark.parametrize(("size", "tile_size", "stride", "crop"), CUTS)
def test_merging_the_tiles_of_a_map_returns_the_map(size: int, tile_size: int, stride: int, crop: int) -> None:
    """A map of cells of 16 pixels, cut like the image, has neither seams nor shifts when it is merged."""
    cells = torch.rand(2, 3, size // 16, size // 16, generator=torch.Generator().manual_seed(0))
    pixels = cells.repeat_interleave(16, dim=-1).repeat_interleave(16, dim=-2)
    tiles = split_tiles(pixels, tile_size, stride)[:, :, ::16, ::16]
    assert torch.equal(merge_tiles(tiles, batch=2, crop=crop), cells)


class _ColorAndPosition(nn.Module):
    """Stands in for a vision transformer: each token holds the mean colour of its patch."""

    def forward(self, tiles: Tensor, intermediate_blocks: tuple[int, ...] = ()) -> tuple[Tensor, list[Tensor]]:
        means = nn.functional.avg_pool2d(tiles, 16)
        return means, [means for _ in intermediate_blocks]


@pytest.mark.parametrize("grid_size", [8, 24])
def test_the_pyramid_keeps_everything_in_its_place(grid_size: int) -> None:
    """With means for transformers and nearest neighbours for upsamplers, each level is the shrunken image."""
    config = SharpConfig.tiny(grid_size=grid_size)
    size = config.image_size
    assert size == {8: 512, 24: 1536}[grid_size]
    encoder = PyramidEncoder(config)
    encoder.patch_encoder = encoder.image_encoder = _ColorAndPosition()  # type: ignore[assignment]
    for name, factor in (("latent0", 8), ("latent1", 4), ("0", 2), ("1", 2), ("2", 2)):
        setattr(
            encoder, f"upsample_{name}" if "latent" in name else f"upsample{name}", nn.Upsample(scale_factor=factor)
        )
    encoder.upsample_lowres = nn.Upsample(scale_factor=2)  # type: ignore[assignment]
    encoder.fuse_lowres = nn.Identity()  # type: ignore[assignment]
    rows, columns = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    image = torch.stack([rows, columns, rows * columns]).unsqueeze(0)
    features = encoder(image)
    assert [feature.shape[-1] for feature in features] == [size // 2 // 2**level for level in range(5)]
    for level, feature in enumerate(features):
        cells = nn.functional.avg_pool2d(image, 2 ** (level + 1))
        # A cell of the transformers covers 16 pixels of its level of the pyramid, which bounds what a shift could hide.
        blocks = {0: 16, 1: 16, 2: 16, 3: 32, 4: 64}[level]
        expected = nn.functional.interpolate(nn.functional.avg_pool2d(image, blocks), cells.shape[-2:])
        for half in feature.split(3, dim=1):  # The coarsest level holds both encoders' maps.
            torch.testing.assert_close(half, expected, rtol=0, atol=1e-4)


def test_tiles_go_through_the_encoder_in_pieces_with_the_same_result() -> None:
    model = parity.small_network()
    encoder = model.monodepth_model.monodepth_predictor.encoder
    image = parity.small_input().image
    seen: list[int] = []
    encoder.patch_encoder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    with torch.inference_mode():
        at_once = encoder(image)
        encoder.num_tiles_at_once = 16
        in_pieces = encoder(image)
    assert seen == [NUM_TILES, 16, 16, 3]
    assert [feature.shape[-1] for feature in at_once] == [256, 128, 64, 32, 16]
    for first, second in zip(at_once, in_pieces, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)

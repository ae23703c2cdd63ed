"""Sizes of the network, inferred from a checkpoint."""

from __future__ import annotations

import pytest

from sharp_cog.model.config import IMAGE_SIZE, SharpConfig, ViTConfig
from tests import parity


def test_a_configuration_is_inferred_from_the_shapes_of_a_checkpoint() -> None:
    assert SharpConfig.matching(parity.shapes("full")) == SharpConfig.released()
    assert SharpConfig.matching(parity.shapes("tiny")) == SharpConfig.tiny()
    small = {name: tuple(tensor.shape) for name, tensor in parity.small_state().items()}
    assert SharpConfig.matching(small) == SharpConfig.tiny(grid_size=8)


@pytest.mark.parametrize("shape", [(), (0,), (1, 577), (1, 577, 999), (64,)])
def test_an_unknown_checkpoint_is_taken_for_the_released_one(shape: tuple[int, ...]) -> None:
    name = "monodepth_model.monodepth_predictor.encoder.patch_encoder.pos_embed"
    assert SharpConfig.matching({name: shape}) == SharpConfig.released()
    assert SharpConfig.matching({}) == SharpConfig.released()


def test_the_image_is_four_tiles_wide() -> None:
    assert SharpConfig.released().image_size == IMAGE_SIZE
    assert SharpConfig.tiny(grid_size=8).image_size == 512


def test_a_width_that_the_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="width 100 is not a multiple of num_heads 16"):
        ViTConfig(width=100)

"""The vision transformer: its attention against float64, and its maps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sharp_cog.model import vit
from sharp_cog.model.vit import Attention, ViT, attend, attend_by_tile
from tests import parity

_ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 8e-3}
"""Relative error, norm over norm, that an output of each type may have."""


@pytest.mark.parametrize("dtype", _ROUNDING)
@pytest.mark.parametrize("compute", [attend, attend_by_tile])
def test_attention_is_that_of_float64(compute: Callable[..., Tensor], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    # The layout in which the linear layer leaves them: tiles, tokens, one of q, k and v, heads, channels.
    query, key, value = torch.randn(3, 50, 3, 4, 16).to(dtype).permute(2, 0, 3, 1, 4).unbind(0)
    weights = (query.double() @ key.double().mT / 16**0.5).softmax(-1)
    expected = weights @ value.double()
    attended = compute(query, key, value)
    assert attended.dtype == dtype
    assert (attended.double() - expected).norm() <= _ROUNDING[dtype] * expected.norm()


@torch.no_grad()
def test_attention_is_computed_tile_by_tile_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Tensor] = []

    def counted(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        calls.append(query)
        return attend_by_tile(query, key, value)

    monkeypatch.setattr(vit, "attend_by_tile", counted)
    torch.manual_seed(0)
    attention, tokens = Attention(32, 2), torch.randn(2, 10, 32)
    at_once = attention(tokens)
    assert not calls
    attention.is_tiled = True
    torch.testing.assert_close(attention(tokens), at_once)
    assert len(calls) == 1


@torch.inference_mode()
def test_maps_are_those_of_the_blocks_and_do_not_change_afterwards() -> None:
    """The residual stream is computed in place, so that an intermediate map must be a copy of it."""
    encoder = parity.small_network().monodepth_model.monodepth_predictor.encoder.patch_encoder
    tiles = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    final, (first, last) = encoder(tiles, (0, 3))
    assert first.shape == last.shape == final.shape == (2, 64, 8, 8)
    normalised = torch.nn.functional.layer_norm(
        last.permute(0, 2, 3, 1), (64,), encoder.norm.weight, encoder.norm.bias, 1e-6
    )
    torch.testing.assert_close(normalised.permute(0, 3, 1, 2), final)
    (only,) = encoder(tiles, (0,))[1]
    assert torch.equal(only, first)


@torch.inference_mode()
def test_a_smaller_square_gets_the_positions_of_the_upper_left() -> None:
    """`small_state` cuts the embedding in the same way, so that both networks see the same small tile."""
    tiles = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    large: ViT = parity.network("tiny").monodepth_model.monodepth_predictor.encoder.patch_encoder
    small: ViT = parity.small_network().monodepth_model.monodepth_predictor.encoder.patch_encoder
    torch.testing.assert_close(large(tiles)[0], small(tiles)[0])

"""Both ways of attending against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sharp_cog.model import vit

_ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 8e-3}
"""Relative error, norm over norm, that an output of that type may have."""


@pytest.mark.parametrize("dtype", _ROUNDING)
@pytest.mark.parametrize("attend", [vit._attend, vit._attend_by_tile])
def test_attention_is_that_of_float64(attend: Callable[..., Tensor], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    # As the linear layer leaves them: tiles, tokens, which, heads, channels.
    query, key, value = torch.randn(3, 50, 3, 4, 16).to(dtype).permute(2, 0, 3, 1, 4).unbind(0)
    weights = (query.double() @ key.double().mT / 16**0.5).softmax(-1)
    expected = weights @ value.double()
    given = attend(query, key, value)
    assert given.dtype == dtype
    assert (given.double() - expected).norm() <= _ROUNDING[dtype] * expected.norm()


@pytest.mark.parametrize("has_amx", [False, True])
@torch.no_grad()
def test_the_way_is_the_cpus(monkeypatch: pytest.MonkeyPatch, has_amx: bool) -> None:
    used: list[str] = []

    def noted(name: str) -> Callable[..., Tensor]:
        attend = getattr(vit, name)

        def call(*tensors: Tensor) -> Tensor:
            used.append(name)
            result: Tensor = attend(*tensors)
            return result

        return call

    for name in ("_attend", "_attend_by_tile"):
        monkeypatch.setattr(vit, name, noted(name))
    monkeypatch.setattr(vit, "cpu_has_amx", lambda: has_amx)
    attention = vit.Attention(32, 2)
    tokens = torch.randn(1, 10, 32)
    exact = attention(tokens)
    rounded = attention.to(torch.bfloat16)(tokens.to(torch.bfloat16)).float()
    assert used == ["_attend", "_attend" if has_amx else "_attend_by_tile"]
    assert (rounded - exact).norm() < 0.05 * exact.norm()

"""Packed linear layers, compared with float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from sharp_cog.runtime.kernels.packed_linear import PackedLinear, can_pack


@pytest.mark.skipif(not can_pack(torch.float32), reason="this build of torch has no oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_gelu", [False, True])
def test_a_packed_layer_computes_the_same_as_the_layer(dtype: torch.dtype, *, has_gelu: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    layer = nn.Linear(96, 160)
    x = torch.randn(2, 33, 96, generator=generator)
    rounded, weight = x.to(dtype).double(), layer.weight.detach().to(dtype).double()
    expected = rounded @ weight.T + layer.bias.detach().to(dtype).double()
    if has_gelu:
        expected = 0.5 * expected * (1 + torch.special.erf(expected / math.sqrt(2)))
    with torch.inference_mode():
        y = PackedLinear(layer.to(dtype), has_gelu=has_gelu)(x.to(dtype))
    assert (y.shape, y.dtype) == ((2, 33, 160), dtype)
    digits = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8}[dtype]
    assert np.abs(y.double().numpy() - expected.numpy()).max() <= digits * expected.abs().max().item()

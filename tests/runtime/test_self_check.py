"""The comparison of half precision with float32 at the start of a process."""

from __future__ import annotations

import math

import torch
from torch import nn

from sharp_cog.runtime.prepare import convert, fold
from sharp_cog.runtime.self_check import LIMIT, probe
from tests.parity import small_network

CPU = torch.device("cpu")


def test_rounding_is_accepted_and_faults_are_not() -> None:
    model = small_network()
    fold(model, device=CPU)
    exact = probe(model, device=CPU)
    assert exact.error(exact) == 0
    convert(model, device=CPU, dtype=torch.bfloat16)
    error = exact.error(probe(model, device=CPU))
    assert 1e-4 < error < LIMIT
    layer = model.monodepth_model.monodepth_predictor.encoder.upsample0[1]
    assert isinstance(layer, nn.ConvTranspose2d)
    weight = layer.weight
    with torch.no_grad():
        weight[:, ::2] = weight[:, 1::2]  # A kernel that misreads the layout of a weight does the like.
    assert exact.error(probe(model, device=CPU)) > LIMIT
    with torch.no_grad():
        weight.fill_(math.nan)
    assert exact.error(probe(model, device=CPU)) == math.inf

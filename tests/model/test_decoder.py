"""The blocks of the decoders, against their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sharp_cog.model.decoder import CastingConv2d, FusionBlock, MultiresDecoder, NormResidualBlock, ResidualConvUnit


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_residual_blocks_follow_their_formulas_and_leave_their_input() -> None:
    x = random(2, 8, 5, 7)
    kept = x.clone()
    unit = ResidualConvUnit(8)
    torch.testing.assert_close(unit(x), x + unit.residual[3](F.relu(unit.residual[1](F.relu(x)))))
    block = NormResidualBlock(8, 4, hidden=6, num_groups=2)
    norm1, _, conv1, norm2, _, conv2 = block.residual
    expected = block.shortcut(x) + conv2(F.relu(norm2(conv1(F.relu(norm1(x))))))
    torch.testing.assert_close(block(x), expected)
    assert torch.equal(x, kept), "a ReLU in place must not reach the input"


@pytest.mark.parametrize("doubles", [False, True])
@torch.inference_mode()
def test_a_fusion_adds_its_skip_connection_and_doubles_the_size(doubles: bool) -> None:
    block, x, skip = FusionBlock(8, doubles=doubles), random(1, 8, 4, 6), random(1, 8, 4, 6) + 1
    assert block(x).shape == ((1, 8, 8, 12) if doubles else (1, 8, 4, 6))
    torch.testing.assert_close(block(x.clone(), skip), block(x + block.resnet1(skip)))


@torch.inference_mode()
def test_a_casting_convolution_takes_any_float_type() -> None:
    conv = CastingConv2d(3, 2, kernel_size=1)
    assert conv(random(1, 3, 2, 2).to(torch.bfloat16)).dtype == torch.float32


@torch.inference_mode()
def test_the_decoder_returns_the_size_of_the_finest_map_in_the_type_of_its_weights() -> None:
    decoder = MultiresDecoder([4, 6, 8], width=4).to(torch.bfloat16)
    features = [random(1, channels, size, size) for channels, size in ((4, 16), (6, 8), (8, 4))]
    decoded = decoder(features)
    assert decoded.shape == (1, 4, 16, 16)
    assert decoded.dtype == torch.bfloat16
    assert isinstance(decoder.convs[0], nn.Identity), "the checkpoint has no weights for a map of the right width"

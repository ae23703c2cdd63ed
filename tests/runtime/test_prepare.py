"""Folding, packing and half precision against Apple's arrays, and against torch's own layers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from sharp_cog.errors import SettingError
from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.imaging.color import linear_to_srgb
from sharp_cog.model import precision
from sharp_cog.model.sharp import Sharp
from sharp_cog.model.vit import Block, ViT
from sharp_cog.runtime.kernels.packed_linear import PackedLinear, can_pack
from sharp_cog.runtime.prepare import convert, fold
from sharp_cog.runtime.self_check import LIMIT, probe
from tests.parity import Reference, network, run

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def prepared(variant: str, dtype: torch.dtype) -> Sharp:
    model = network(variant)
    fold(model, device=CPU)
    convert(model, device=CPU, dtype=dtype)
    return model


def test_the_folded_and_packed_network_gives_apples_numbers() -> None:
    """The same limit as the network that is written as Apple's is."""
    model = prepared("tiny", torch.float32)
    assert any(isinstance(module, PackedLinear) for module in model.modules()) == can_pack(torch.float32)
    errors, _ = run(model, Reference.load("tiny"))
    assert max(errors.values()) <= 1e-4, errors


def test_folding_leaves_nothing_of_what_it_folds() -> None:
    model = network("tiny")
    before = set(model.state_dict())
    fold(model, device=CPU)
    gone = before - set(model.state_dict())
    assert {name.rsplit(".", 2)[-2] for name in gone} == {"ls1", "ls2", "out_conv"}
    assert len([name for name in gone if name.endswith("gamma")]) == 2 * len(
        [module for module in model.modules() if isinstance(module, Block)]
    )


def test_tiles_may_go_through_in_any_number() -> None:
    model, reference = network("tiny"), Reference.load("tiny")
    encoder = model.monodepth_model.monodepth_predictor.encoder
    with torch.inference_mode():
        whole = encoder(reference.image)
        encoder.num_tiles_at_once = 4  # Which does not divide 35.
        parts = encoder(reference.image)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def compared(gaussians: NDCGaussians, reference: Reference) -> tuple[float, float, float]:
    """PSNR of sRGB colours, and which shares of means and scales are within 1 % of Apple's float32."""
    index = torch.from_numpy(reference.arrays["gaussian_index"])

    def pair(field: str, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return getattr(gaussians, field)[0][index].double(), torch.from_numpy(reference.arrays[name]).double()

    ours, apples = (linear_to_srgb(colors.float()) for colors in pair("colors_linear", "colors"))
    psnr = -10 * math.log10((ours - apples).square().mean().item())
    means, apples_means = pair("means", "ndc_mean_vectors")
    of_means = ((means - apples_means).norm(dim=1) <= 0.01 * apples_means.norm(dim=1)).double().mean().item()
    scales, apples_scales = pair("scales", "ndc_singular_values")
    of_scales = ((scales / apples_scales - 1).abs().amax(dim=1) <= 0.01).double().mean().item()
    return psnr, of_means, of_scales


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_bfloat16_keeps_the_colours_of_apples_full_network() -> None:
    """Means and scales are farther off than 1 % in many places; benchmarks/README.md has the figures."""
    _, gaussians = run(prepared("full", torch.bfloat16), Reference.load("full"))
    psnr, of_means, of_scales = compared(gaussians, Reference.load("full"))
    print(f"{psnr:.1f} dB, {of_means:.2%} of means and {of_scales:.2%} of scales within 1 %")
    assert psnr >= 50


def test_what_must_stay_float32_does() -> None:
    model = prepared("tiny", torch.bfloat16)
    reference = Reference.load("tiny")
    with torch.inference_mode():
        encoding = model.encode(reference.image)
        gaussians = model.place(reference.image, encoding.decoded, model.depth(encoding, reference.disparity_factor))
    assert encoding.disparity.dtype == torch.float32
    assert encoding.decoded.dtype == torch.float32, "on a CPU; on CUDA it is half"
    assert gaussians.means.dtype == gaussians.opacities.dtype == torch.float32
    assert len(encoding.disparity.unique()) > 100_000, "the digits of bfloat16 alone would give some thousands"
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            assert module.weight.dtype == torch.float32
        if isinstance(module, ViT):
            assert module.pos_embed.dtype == module.patch_embed.proj.weight.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in model.depth_alignment.parameters())


def test_the_self_check_sees_rounding_and_tells_it_from_faults() -> None:
    model = network("tiny")
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
        weight[:, ::2] = weight[:, 1::2]  # As a layout that was taken for another would.
    assert exact.error(probe(model, device=CPU)) > LIMIT
    with torch.no_grad():
        weight.fill_(math.nan)
    assert exact.error(probe(model, device=CPU)) == math.inf


@pytest.mark.skipif(not can_pack(torch.float32), reason="this build of torch has no oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_gelu", [False, True])
def test_a_packed_layer_is_the_layer(dtype: torch.dtype, *, has_gelu: bool) -> None:
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


def test_a_precision_is_chosen_by_what_the_device_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_it, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda has_it=has_it: has_it)
        assert precision.choose("auto", CPU) == expected
        assert precision.choose("float32", CPU) == torch.float32
    assert precision.choose("auto", torch.device("cuda")) == torch.float16
    assert precision.choose("auto", torch.device("mps")) == torch.float32
    with pytest.raises(SettingError, match="SHARP_PRECISION is 'bfloat16', for which this CPU"):
        precision.choose("bfloat16", CPU)
    with pytest.raises(SettingError, match="SHARP_PRECISION is 'float16', for which this CPU"):
        precision.choose("float16", CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(SettingError, match="'bfloat16', which Tesla T4 does not have: choose float16"):
        precision.choose("bfloat16", torch.device("cuda"))


def test_what_comes_but_once_is_not_tuned_for() -> None:
    """Trying all of cuDNN's algorithms takes longer than any of them."""
    before = torch.backends.cudnn.benchmark
    for device, is_lasting, expected in ((CUDA, True, True), (CUDA, False, False), (CPU, True, False)):
        with precision.exact_sums(CUDA), precision.exact_sums(device, is_lasting=is_lasting):
            assert torch.backends.cudnn.benchmark == expected
            assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.benchmark == before

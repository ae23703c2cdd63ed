"""Folding and conversion of the network, compared with Apple's arrays."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.imaging.color import linear_to_srgb
from sharp_cog.model.external_depth import DEFAULT_USE
from sharp_cog.model.monodepth import depth_from_disparity
from sharp_cog.model.sharp import Sharp
from sharp_cog.model.vit import Attention, Block, ViT
from sharp_cog.runtime import prepare
from sharp_cog.runtime.kernels.packed_linear import PackedLinear, can_pack
from sharp_cog.runtime.prepare import convert, fold
from tests.parity import Reference, network, run, small_input, small_network

CPU = torch.device("cpu")


def prepared(model: Sharp, dtype: torch.dtype) -> Sharp:
    fold(model, device=CPU)
    convert(model, device=CPU, dtype=dtype)
    return model


def test_the_folded_and_packed_network_computes_apples_numbers() -> None:
    model = prepared(network("tiny"), torch.float32)
    assert any(isinstance(module, PackedLinear) for module in model.modules()) == can_pack(torch.float32)
    errors, _ = run(model, Reference.load("tiny"))
    assert max(errors.values()) <= 1e-4, errors


def test_folding_removes_the_parameters_that_it_folds() -> None:
    model = small_network()
    before = set(model.state_dict())
    fold(model, device=CPU)
    removed = before - set(model.state_dict())
    assert {name.rsplit(".", 2)[-2] for name in removed} == {"ls1", "ls2", "out_conv"}
    assert len([name for name in removed if name.endswith("gamma")]) == 2 * len(
        [module for module in model.modules() if isinstance(module, Block)]
    )


def compared(gaussians: NDCGaussians, reference: Reference) -> tuple[float, float, float]:
    """Return the PSNR of sRGB colours, and the shares of means and scales within 1 % of Apple's float32."""
    index = torch.from_numpy(reference.arrays["gaussian_index"])

    def pair(field: str, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return getattr(gaussians, field)[0][index].double(), torch.from_numpy(reference.arrays[name]).double()

    ours, apples = (linear_to_srgb(colors.float()) for colors in pair("colors_linear", "colors"))
    psnr = -10 * math.log10((ours - apples).square().mean().item())
    means, apples_means = pair("means", "ndc_mean_vectors")
    means_share = ((means - apples_means).norm(dim=1) <= 0.01 * apples_means.norm(dim=1)).double().mean().item()
    scales, apples_scales = pair("scales", "ndc_singular_values")
    scales_share = ((scales / apples_scales - 1).abs().amax(dim=1) <= 0.01).double().mean().item()
    return psnr, means_share, scales_share


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_bfloat16_keeps_the_colours_of_apples_full_network() -> None:
    # Many means and scales differ by more than 1 %: benchmarks/README.md has the figures.
    _, gaussians = run(prepared(network("full"), torch.bfloat16), Reference.load("full"))
    psnr, means_share, scales_share = compared(gaussians, Reference.load("full"))
    print(f"{psnr:.1f} dB, {means_share:.2%} of means and {scales_share:.2%} of scales within 1 %")
    assert psnr >= 50


def test_the_parts_that_need_float32_stay_in_float32() -> None:
    model, model_input = prepared(small_network(), torch.bfloat16), small_input()
    with torch.inference_mode():
        encoding = model.encode(model_input.image)
        monodepth_m = depth_from_disparity(encoding.disparity, model_input.disparity_factor)
        depth_m = model.depth_layers(monodepth_m, None, DEFAULT_USE)
        gaussians = model.compose(model_input.image, encoding.decoded, depth_m)
    assert encoding.disparity.dtype == torch.float32
    assert encoding.decoded.dtype == torch.float32, "on a CPU; on CUDA it is half"
    assert gaussians.means.dtype == gaussians.opacities.dtype == torch.float32
    # The disparity has the digits of float32: in bfloat16, 128 values lie between a power of two and the next.
    assert len(encoding.disparity.unique()) > 50_000
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            assert module.weight.dtype == torch.float32
        if isinstance(module, ViT):
            assert module.pos_embed.dtype == module.patch_embed.proj.weight.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in model.depth_alignment.parameters())


@pytest.mark.parametrize(
    ("device", "dtype", "has_amx", "expected"),
    [
        ("cpu", torch.bfloat16, False, True),
        ("cpu", torch.bfloat16, True, False),
        ("cpu", torch.float32, False, False),
        ("meta", torch.bfloat16, False, False),
    ],
)
def test_attention_goes_tile_by_tile_only_in_bfloat16_on_a_cpu_without_amx(
    monkeypatch: pytest.MonkeyPatch, device: str, dtype: torch.dtype, has_amx: bool, expected: bool
) -> None:
    monkeypatch.setattr(prepare, "cpu_has_amx", lambda: has_amx)
    model = small_network().to(device)
    convert(model, device=torch.device(device), dtype=dtype, packs=False)
    assert {module.is_tiled for module in model.modules() if isinstance(module, Attention)} == {expected}

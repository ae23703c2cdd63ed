"""Tests that need a CUDA device: `scripts/test -m gpu`. Weights are synthetic, of the released sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from sharp_cog import Settings, SharpPipeline
from sharp_cog.errors import PredictionError
from sharp_cog.formats.ply import _vertex_rows, vertex_block
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.imaging.color import linear_to_srgb
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.runtime.graphs import GraphedCall
from sharp_cog.runtime.precision import exact_sums
from sharp_cog.runtime.preprocess import ModelInput
from sharp_cog.runtime.runner import SharpRunner
from sharp_cog.runtime.unproject import unproject
from sharp_cog.runtime.weights import Weights
from tests.images import png
from tests.parity import Reference, state

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]

CUDA = torch.device("cuda")
GB = 10**9


@pytest.fixture(scope="module")
def weights() -> Weights:
    return Weights(state=state("full"), is_folded=False)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.load("full")


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.0)


def predicted(runner: SharpRunner, reference: Reference, image_hash: str | None = None) -> NDCGaussians:
    model_input = ModelInput(
        image=reference.image.to(CUDA),
        disparity_factor=reference.disparity_factor.to(CUDA),
        image_hash=image_hash,
    )
    with torch.inference_mode(), exact_sums(CUDA):
        return runner.predict(model_input).gaussians


def pipeline_of(runner: SharpRunner) -> SharpPipeline:
    return SharpPipeline(runner, device=CUDA, settings=Settings(device="cuda"))


def within(ours: torch.Tensor, apples: torch.Tensor, share: float) -> float:
    return float(((ours - apples).norm(dim=-1) <= share * apples.norm(dim=-1)).double().mean())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_against_apples_float32(weights: Weights, reference: Reference, dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bfloat16")
    gaussians = predicted(SharpRunner(weights, device=CUDA, dtype=dtype), reference)
    index = torch.from_numpy(reference.arrays["gaussian_index"])

    def pair(field: str, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return getattr(gaussians, field)[0].cpu()[index], torch.from_numpy(reference.arrays[name])

    ours, apples = (linear_to_srgb(colors) for colors in pair("colors_linear", "colors"))
    psnr = -10 * math.log10((ours - apples).square().mean().item())
    means_share, scales_share = (
        within(*pair(*names), 0.01) for names in (("means", "ndc_mean_vectors"), ("scales", "ndc_singular_values"))
    )
    print(f"{dtype}: {psnr:.1f} dB, {means_share:.2%} of means and {scales_share:.2%} of scales within 1 %")
    assert psnr >= 50
    if dtype == torch.float16:
        assert means_share >= 0.999
        assert scales_share >= 0.999


def test_float32_against_apples(weights: Weights, reference: Reference) -> None:
    gaussians = predicted(SharpRunner(weights, device=CUDA, dtype=torch.float32), reference)
    index = torch.from_numpy(reference.arrays["gaussian_index"])
    assert within(gaussians.means[0].cpu()[index], torch.from_numpy(reference.arrays["ndc_mean_vectors"]), 1e-3) == 1


def test_graphs_compute_the_same_as_single_launches(weights: Weights, reference: Reference) -> None:
    graphed, eager = (
        SharpRunner(weights, device=CUDA, dtype=torch.float16, uses_graphs=uses_graphs) for uses_graphs in (True, False)
    )
    first = predicted(graphed, reference, "a")
    kept = {name: getattr(first, name).clone() for name in ("means", "colors_linear", "opacities")}
    other = Reference(arrays={}, camera=reference.camera, image=reference.image.flip(3))
    predicted(graphed, other, "b")
    for name, value in kept.items():
        assert torch.equal(getattr(first, name), value), "a later replay overwrote an earlier result"
    again = predicted(graphed, reference, "a")
    assert torch.equal(again.means, first.means)
    torch.testing.assert_close(again.means, predicted(eager, reference).means, rtol=1e-2, atol=1e-3)
    assert graphed.counters.memory_shortages == graphed.counters.graph_failures == 0
    zoomed = predicted(graphed, reference, "a")
    assert graphed.counters.reused_encodings == 1
    assert torch.equal(zoomed.means, first.means)


def test_a_graph_replays_a_function_on_new_inputs() -> None:
    call = GraphedCall(lambda x, y: (x * 2 + y, x.sum()), pool=torch.cuda.graph_pool_handle())
    for seed in range(3):
        torch.manual_seed(seed)
        x, y = torch.randn(1000, device=CUDA), torch.randn(1000, device=CUDA)
        twice, total = call(x, y)
        torch.testing.assert_close(twice, x * 2 + y)
        torch.testing.assert_close(total, x.sum())


def test_overflow_is_repeated_in_float32(weights: Weights, caplog: pytest.LogCaptureFixture) -> None:
    runner = SharpRunner(weights, device=CUDA, dtype=torch.float16)
    with torch.no_grad():
        for parameter in runner.model.feature_model.fusion.parameters():
            parameter.fill_(6e4)
    prediction = pipeline_of(runner)(png())
    assert prediction.precision == "float32"
    assert runner.counters.float32_repeats == 1
    assert all(getattr(prediction.gaussians, name).isfinite().all() for name in ("means", "scales", "colors_linear"))
    assert "repeated in float32" in caplog.text


@pytest.mark.parametrize(("dtype", "limit_gb"), [(torch.float16, 6), (torch.float32, 12)])
def test_predictions_fit_in_the_promised_memory(weights: Weights, dtype: torch.dtype, limit_gb: int) -> None:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction(limit_gb * GB / total)
    pipeline = pipeline_of(SharpRunner(weights, device=CUDA, dtype=dtype))
    for seed in range(3):
        vertex_block(pipeline(png(4032, 3024, seed)).gaussians)
    print(f"{dtype}: {torch.cuda.max_memory_reserved() / GB:.2f} GB reserved at most")
    assert pipeline.counters.memory_shortages == 0


def test_too_little_memory_leads_to_smaller_parts_and_then_to_an_error(weights: Weights) -> None:
    runner = SharpRunner(weights, device=CUDA, dtype=torch.float16)
    pipeline = pipeline_of(runner)
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.set_per_process_memory_fraction(1.6 * GB / total)
    with pytest.raises(PredictionError, match="ran out of memory"):
        pipeline(png())
    assert runner.counters.memory_shortages > 0
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert pipeline(png()).gaussians.means.isfinite().all()


def test_the_fused_kernels_are_used_and_agree_with_their_twins(weights: Weights) -> None:
    gaussians = pipeline_of(SharpRunner(weights, device=CUDA, dtype=torch.float16))(png()).gaussians
    torch.testing.assert_close(
        torch.from_numpy(vertex_block(gaussians)), _vertex_rows(gaussians).cpu(), rtol=1e-5, atol=1e-5
    )


def test_unprojection_on_the_device_agrees_with_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    num = 100_000
    ndc = NDCGaussians(
        means=torch.randn(1, num, 3, generator=generator),
        scales=10 ** (torch.rand(1, num, 3, generator=generator) * 3 - 4),
        quaternions_wxyz=torch.randn(1, num, 4, generator=generator),
        colors_linear=torch.rand(1, num, 3, generator=generator),
        opacities=torch.rand(1, num, generator=generator),
    )
    on_device = NDCGaussians(**{name: getattr(ndc, name).to(CUDA) for name in NDCGaussians.__dataclass_fields__})
    camera = Camera(width=4032, height=3024, focal_length_px=3000.0)
    theirs, ours = unproject(ndc, camera), unproject(on_device, camera)
    torch.testing.assert_close(ours.scales.cpu(), theirs.scales, rtol=4e-6, atol=0)


def test_map_computes_the_same_as_single_calls(weights: Weights) -> None:
    pipeline = pipeline_of(SharpRunner(weights, device=CUDA, dtype=torch.float16))
    images = [png(800, 600, seed) for seed in (1, 2, 3, 1)]

    def encode(prediction: Prediction) -> bytes:
        return vertex_block(prediction.gaussians).tobytes()

    for block, image in zip(pipeline.map(images, encode=encode), images, strict=True):
        assert block == encode(pipeline(image))

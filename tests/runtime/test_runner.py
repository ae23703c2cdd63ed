"""SharpRunner when precision, memory or CUDA graphs fail, and its reuse of encodings."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.model.sharp import UNUSED_PARAMETERS
from sharp_cog.runtime.graphs import CaptureError, GraphedCall
from sharp_cog.runtime.preprocess import ModelInput
from sharp_cog.runtime.runner import SharpRunner
from sharp_cog.runtime.weights import Weights
from tests.parity import small_input, small_state

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights() -> Weights:
    return Weights(state=small_state(), is_folded=False)


@pytest.fixture(scope="module")
def model_input() -> ModelInput:
    return small_input()


def predicted(runner: SharpRunner, model_input: ModelInput, image_hash: str | None = None) -> NDCGaussians:
    with torch.inference_mode():
        return runner.predict(replace(model_input, image_hash=image_hash)).gaussians


def assert_same(one: NDCGaussians, other: NDCGaussians) -> None:
    assert torch.equal(one.means, other.means)
    assert torch.equal(one.colors_linear, other.colors_linear)


def test_half_precision_is_compared_with_float32_at_the_start(weights: Weights) -> None:
    runner = SharpRunner(weights, device=CPU, dtype=torch.bfloat16)
    assert runner.dtype == torch.bfloat16
    assert 1e-4 < runner.error < 0.05
    assert SharpRunner(weights, device=CPU, dtype=torch.float32).error == 0


def test_float32_is_used_where_half_precision_is_wrong(
    weights: Weights, model_input: ModelInput, caplog: pytest.LogCaptureFixture
) -> None:
    name = "monodepth_model.monodepth_predictor.encoder.patch_encoder.blocks.1.mlp.fc1.weight"
    large = {**weights.state, name: weights.state[name].clone()}
    large[name][0, 0] = 1e5  # Beyond the range of float16.
    source = Weights(state=large, is_folded=False)
    with caplog.at_level(logging.WARNING):
        runner = SharpRunner(source, device=CPU, dtype=torch.float16)
    assert runner.dtype == torch.float32
    assert runner.counters.float32_fallbacks == 1
    assert "float16" in caplog.text
    assert "float32 is used" in caplog.text
    exact = SharpRunner(source, device=CPU, dtype=torch.float32)
    assert_same(predicted(runner, model_input), predicted(exact, model_input))


def test_a_prediction_that_overflows_is_repeated_in_float32(
    weights: Weights, model_input: ModelInput, caplog: pytest.LogCaptureFixture
) -> None:
    runner = SharpRunner(weights, device=CPU, dtype=torch.bfloat16)
    exact = SharpRunner(weights, device=CPU, dtype=torch.float32)
    with torch.no_grad():
        runner.model.get_parameter("prediction_head.texture_prediction_head.bias").fill_(
            torch.inf
        )  # The checkpoint stays finite.
    with torch.inference_mode():
        repeated, expected = runner.predict(model_input), exact.predict(model_input)
    assert_same(repeated.gaussians, expected.gaussians)
    assert repeated.monodepth_m is not None
    assert expected.monodepth_m is not None
    assert torch.equal(repeated.monodepth_m, expected.monodepth_m)
    assert repeated.precision == "float32"
    assert runner.counters.float32_repeats == 1
    assert "repeated in float32" in caplog.text


def test_the_same_image_skips_the_encoders(weights: Weights, model_input: ModelInput) -> None:
    runner = SharpRunner(weights, device=CPU, dtype=torch.bfloat16)
    first = predicted(runner, model_input, "a")
    calls: list[int] = []
    runner.model.monodepth_model.register_forward_hook(lambda *_: calls.append(1))
    assert_same(predicted(runner, model_input, "a"), first)
    assert (calls, runner.counters.reused_encodings) == ([], 1)

    zoomed_input = replace(model_input, disparity_factor=2 * model_input.disparity_factor)
    zoomed = predicted(runner, zoomed_input, "a")
    assert calls == [], "the focal length does not matter to the encoders"
    assert_same(zoomed, predicted(SharpRunner(weights, device=CPU, dtype=torch.bfloat16), zoomed_input))
    assert not torch.equal(zoomed.means, first.means)

    predicted(runner, model_input, "b")
    assert len(calls) == 1
    predicted(runner, model_input, "a")
    assert len(calls) == 2, "only the last image is kept"
    predicted(runner, model_input)
    predicted(runner, model_input)
    assert len(calls) == 4, "an image without a hash is always new"


def test_no_encoding_is_kept_if_the_setting_is_off(weights: Weights, model_input: ModelInput) -> None:
    runner = SharpRunner(weights, device=CPU, dtype=torch.float32, keeps_encoding=False)
    predicted(runner, model_input, "a")
    predicted(runner, model_input, "a")
    assert runner.counters.reused_encodings == 0


def test_the_work_is_cut_into_smaller_parts_where_memory_runs_out(
    weights: Weights, model_input: ModelInput, caplog: pytest.LogCaptureFixture
) -> None:
    runner = SharpRunner(weights, device=CPU, dtype=torch.float32)
    expected = predicted(runner, model_input)
    encoder = runner.model.monodepth_model.monodepth_predictor.encoder
    encoder.num_tiles_at_once = 35
    sizes: list[int] = []

    def limited(module: object, arguments: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(arguments[0]))
        if len(arguments[0]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    encoder.patch_encoder.register_forward_pre_hook(limited)
    found = predicted(runner, model_input)
    assert sizes[:3] == [35, 12, 4]
    torch.testing.assert_close(found.means, expected.means, rtol=1e-4, atol=1e-5)
    assert runner.counters.memory_shortages == 2
    assert "ran out of memory" in caplog.text
    sizes.clear()
    predicted(runner, model_input)
    assert max(sizes) == 4, "a size that did not fit is not tried again"


def test_a_device_without_any_memory_raises_and_works_again_later(weights: Weights, model_input: ModelInput) -> None:
    runner = SharpRunner(weights, device=CPU, dtype=torch.float32)
    encoder = runner.model.monodepth_model.monodepth_predictor.encoder
    expected = predicted(runner, model_input)

    def never(module: object, arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    handle = encoder.patch_encoder.register_forward_pre_hook(never)
    encoder.num_tiles_at_once = 35
    with pytest.raises(torch.OutOfMemoryError):
        predicted(runner, model_input)
    handle.remove()
    assert_same(predicted(runner, model_input), expected)


def test_a_network_that_cannot_be_captured_runs_without_graphs(
    weights: Weights, model_input: ModelInput, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: GraphedCall, *inputs: torch.Tensor) -> None:
        raise CaptureError("operation not permitted when stream is capturing")

    monkeypatch.setattr(GraphedCall, "__call__", refuse)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    runner = SharpRunner(weights, device=CPU, dtype=torch.float32)
    expected = predicted(runner, model_input)
    runner._uses_graphs = True
    assert_same(predicted(runner, model_input), expected)
    assert runner.counters.graph_failures == 1
    assert "cannot be captured as CUDA graphs" in caplog.text
    assert "operation not permitted" in caplog.text


def test_converted_weights_make_the_same_network(weights: Weights) -> None:
    folded = weights.converted(torch.float32)
    assert folded.is_folded
    assert not UNUSED_PARAMETERS & folded.state.keys()
    one = SharpRunner(folded, device=CPU, dtype=torch.float32)
    other = SharpRunner(weights, device=CPU, dtype=torch.float32)
    for (name, tensor), (_, twin) in zip(one.model.state_dict().items(), other.model.state_dict().items(), strict=True):
        assert torch.equal(tensor, twin), name

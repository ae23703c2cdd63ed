"""SHARP as it is run: what happens when precision, memory or luck runs out."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.model.sharp import UNUSED_PARAMETERS
from sharp_cog.runtime.graphs import CaptureError, GraphedCall
from sharp_cog.runtime.runner import SharpRunner
from sharp_cog.runtime.weights import Weights
from tests.parity import Reference, state

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights() -> Weights:
    return Weights(state=state("tiny"), is_folded=False)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.load("tiny")


def predicted(runner: SharpRunner, reference: Reference, **arguments: Any) -> NDCGaussians:
    with torch.inference_mode():
        return runner(reference.image, reference.disparity_factor, **arguments)


def assert_same(one: NDCGaussians, other: NDCGaussians) -> None:
    assert torch.equal(one.means, other.means)
    assert torch.equal(one.colors_linear, other.colors_linear)


def test_half_precision_is_checked_when_it_is_loaded(weights: Weights) -> None:
    runner = SharpRunner(weights, device=CPU, dtype=torch.bfloat16)
    assert runner.dtype == torch.bfloat16
    assert 1e-4 < runner.error < 0.05
    assert SharpRunner(weights, device=CPU, dtype=torch.float32).error == 0


def test_where_half_precision_is_wrong_float32_is_used(
    weights: Weights, reference: Reference, caplog: pytest.LogCaptureFixture
) -> None:
    """A weight beyond float16 is not one beyond float32."""
    name = "monodepth_model.monodepth_predictor.encoder.patch_encoder.blocks.1.mlp.fc1.weight"
    large = dict(weights.state)
    large[name] = large[name].clone()
    large[name][0, 0] = 1e5
    source = Weights(state=large, is_folded=False)
    with caplog.at_level(logging.WARNING):
        runner = SharpRunner(source, device=CPU, dtype=torch.float16)
    assert runner.dtype == torch.float32
    assert runner.counters.float32_fallbacks == 1
    assert "this device computes something else in float16 than in float32" in caplog.text
    exact = SharpRunner(source, device=CPU, dtype=torch.float32)
    assert_same(predicted(runner, reference), predicted(exact, reference))


def test_the_same_picture_skips_the_encoders(weights: Weights, reference: Reference) -> None:
    runner = SharpRunner(weights, device=CPU, dtype=torch.bfloat16)
    first = predicted(runner, reference, image_key="a")
    calls = []
    runner.model.monodepth_model.register_forward_hook(lambda *_: calls.append(1))
    assert_same(predicted(runner, reference, image_key="a"), first)
    assert (calls, runner.counters.reused_encodings) == ([], 1)

    longer = Reference(arrays={}, camera=reference.camera, image=reference.image)
    with torch.inference_mode():
        zoomed = runner(longer.image, 2 * reference.disparity_factor, image_key="a")
        fresh = SharpRunner(weights, device=CPU, dtype=torch.bfloat16)(longer.image, 2 * reference.disparity_factor)
    assert calls == []
    assert_same(zoomed, fresh)
    assert not torch.equal(zoomed.means, first.means)

    predicted(runner, reference, image_key="b")
    assert len(calls) == 1
    predicted(runner, reference, image_key="a")
    assert len(calls) == 2, "one picture is kept, the last"
    predicted(runner, reference)
    predicted(runner, reference)
    assert len(calls) == 4, "without a key every picture is new"


def test_nothing_is_kept_unless_it_is_wanted(weights: Weights, reference: Reference) -> None:
    runner = SharpRunner(weights, device=CPU, dtype=torch.float32, keeps_encoding=False)
    predicted(runner, reference, image_key="a")
    predicted(runner, reference, image_key="a")
    assert runner.counters.reused_encodings == 0


def test_a_shortage_of_memory_is_met_with_smaller_parts(
    weights: Weights, reference: Reference, caplog: pytest.LogCaptureFixture
) -> None:
    runner = SharpRunner(weights, device=CPU, dtype=torch.float32)
    expected = predicted(runner, reference)
    encoder = runner.model.monodepth_model.monodepth_predictor.encoder
    encoder.num_tiles_at_once = 35
    sizes: list[int] = []

    def limited(module: object, arguments: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(arguments[0]))
        if len(arguments[0]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")

    encoder.patch_encoder.register_forward_pre_hook(limited)
    found = predicted(runner, reference)
    assert sizes[:3] == [35, 12, 4]
    torch.testing.assert_close(found.means, expected.means, rtol=1e-4, atol=1e-5)
    assert runner.counters.memory_shortages == 2
    assert "out of memory: going on" in caplog.text
    sizes.clear()
    predicted(runner, reference)
    assert max(sizes) == 4, "what did not fit once is not tried again"


def test_a_device_without_any_memory_says_so_and_works_again_later(weights: Weights, reference: Reference) -> None:
    runner = SharpRunner(weights, device=CPU, dtype=torch.float32)
    encoder = runner.model.monodepth_model.monodepth_predictor.encoder
    expected = predicted(runner, reference)

    def never(module: object, arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    handle = encoder.patch_encoder.register_forward_pre_hook(never)
    encoder.num_tiles_at_once = 35
    with pytest.raises(torch.OutOfMemoryError):
        predicted(runner, reference)
    handle.remove()
    assert_same(predicted(runner, reference), expected)


def test_what_cannot_be_captured_is_launched_without_graphs(
    weights: Weights, reference: Reference, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: GraphedCall, *inputs: torch.Tensor) -> None:
        raise CaptureError("operation not permitted when stream is capturing")

    monkeypatch.setattr(GraphedCall, "__call__", refuse)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    runner = SharpRunner(weights, device=CPU, dtype=torch.float32)
    expected = predicted(runner, reference)
    runner._uses_graphs = True
    assert_same(predicted(runner, reference), expected)
    assert runner.counters.graph_failures == 1
    assert "cannot be captured as CUDA graphs, and is launched without: operation not permitted" in caplog.text


def test_networks_are_filled_with_all_that_the_checkpoint_holds(weights: Weights) -> None:
    folded = weights.converted(torch.float32)
    assert folded.is_folded
    assert not UNUSED_PARAMETERS & folded.state.keys()
    one = SharpRunner(folded, device=CPU, dtype=torch.float32)
    other = SharpRunner(weights, device=CPU, dtype=torch.float32)
    for (name, tensor), (_, twin) in zip(one.model.state_dict().items(), other.model.state_dict().items(), strict=True):
        assert torch.equal(tensor, twin), name

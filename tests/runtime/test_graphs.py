"""CUDA graphs without CUDA: a tape records operations in place of a graph, and replays them on the CPU.

A tape is as strict as a graph: it computes on the buffers that it was recorded with, and a tape that was recorded
earlier in the same pool may overwrite its results.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.model.external_depth import DepthUse
from sharp_cog.runtime.graphs import CaptureError, GraphedCall
from sharp_cog.runtime.runner import SharpRunner
from sharp_cog.runtime.weights import Weights
from tests.parity import small_input, small_state

CPU = torch.device("cpu")


def tensors(value: Any) -> list[Tensor]:
    """Return all tensors in a value except packed weights, which have no storage and never change."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and not leaf.is_mkldnn]


class Tape(TorchDispatchMode):
    """Stand-in for `torch.cuda.CUDAGraph`.

    Attributes:
        later: Tapes of the same pool that were recorded after this tape.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.later: list[Tape] = []
        self.num_replays = 0
        self._calls: list[tuple[Any, Sequence[Any], Mapping[str, Any], list[Tensor]]] = []
        self._own: dict[int, Tensor] = {}

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        kwargs = dict(kwargs or {})
        known = {tensor.untyped_storage()._cdata for tensor in tensors((args, kwargs))}
        result = function(*args, **kwargs)
        made = [tensor for tensor in tensors(result) if tensor.untyped_storage()._cdata not in known]
        self._own |= {tensor.untyped_storage()._cdata: tensor for tensor in made}
        self._calls.append((function, args, kwargs, made))
        return result

    def replay(self) -> None:
        self.num_replays += 1
        for tape in self.later:
            tape.overwrite()
        for function, args, kwargs, made in self._calls:
            again = tensors(function(*args, **kwargs))
            for buffer, value in zip(made, again if made else (), strict=bool(made)):
                buffer.copy_(value)

    def overwrite(self) -> None:
        for tensor in self._own.values():
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Replace the graphs of `torch.cuda` by tapes, and return those that get recorded."""
    recorded: list[Tape] = []

    @contextlib.contextmanager
    def record(tape: Tape, pool: object, stream: object, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        for earlier in recorded:
            earlier.later.append(tape)
        recorded.append(tape)
        with tape:
            yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    return recorded


def test_a_function_is_replayed_on_new_inputs(tapes: list[Tape]) -> None:
    num_calls = 0

    def function(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal num_calls
        num_calls += 1
        return (x * 2).add_(y), x.sum()

    call = GraphedCall(function, pool=object())
    for seed in range(3):
        torch.manual_seed(seed)
        x, y = torch.randn(10), torch.randn(10)
        kept = x.clone()
        twice, total = call(x, y)
        assert torch.equal(twice, x * 2 + y)
        assert torch.equal(total, x.sum())
        assert torch.equal(x, kept)
    assert num_calls == 3, "two warm-ups and a capture"
    assert [tape.num_replays for tape in tapes] == [3]


def test_a_function_that_waits_for_the_device_cannot_be_captured(tapes: list[Tape]) -> None:
    call = GraphedCall(lambda x: x * x.sum().item(), pool=object())
    with pytest.raises(CaptureError, match="not permitted"):
        call(torch.ones(3))


def test_a_fixed_input_is_not_copied(tapes: list[Tape]) -> None:
    call = GraphedCall(lambda x: x + 1, pool=object(), fixed=(0,))
    buffer = torch.zeros(3)
    call(buffer)
    buffer.fill_(5)
    assert torch.equal(call(buffer), torch.full((3,), 6.0))
    with pytest.raises(AssertionError, match="moved"):
        call(buffer.clone())


def test_the_network_captured_as_graphs_computes_the_same(tapes: list[Tape], monkeypatch: pytest.MonkeyPatch) -> None:
    """Images, depth maps and focal lengths alternate, so that a buffer of one in another would show."""
    monkeypatch.setattr("sharp_cog.runtime.graphs._NUM_WARM_UPS", 0)
    runner = SharpRunner(Weights(state=small_state(), is_folded=False), device=CPU, dtype=torch.float32)
    first = replace(small_input(), image_hash="a", use=DepthUse(mode="ratio"))
    size = first.image.shape[-1]
    second = replace(
        first,
        image=first.image.flip(3),
        depth_m=torch.linspace(1, 5, size).expand(1, 1, size, size),
        image_hash="b",
    )
    third = replace(second, disparity_factor=2 * first.disparity_factor, depth_m=None)

    def predicted() -> list[NDCGaussians]:
        with torch.inference_mode():
            return [runner.predict(model_input).gaussians for model_input in (first, second, third)]

    expected = predicted()
    runner._uses_graphs = True
    for found, exact in zip(predicted(), expected, strict=True):
        for field in fields(NDCGaussians):
            assert torch.equal(getattr(found, field.name), getattr(exact, field.name)), field.name
    assert runner.counters.graph_failures == 0
    assert runner.counters.reused_encodings == 2
    assert [tape.num_replays for tape in tapes] == [2, 3]

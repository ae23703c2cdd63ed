"""CUDA graphs without CUDA: the calls of torch.cuda's own are a tape, which runs the same operations again.

As a graph, a tape knows nothing of Python: it computes on the buffers that it was recorded with, and what one of the
same pool was recorded before may overwrite what it computed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
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
from tests.parity import Reference, state

CPU = torch.device("cpu")


def tensors(value: Any) -> list[Tensor]:
    """All in a value but packed weights, which have no storage and never change."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and not leaf.is_mkldnn]


class Tape(TorchDispatchMode):
    """Stands for `torch.cuda.CUDAGraph`.

    Attributes:
        later: Tapes of the same pool that were recorded after this one.
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
            tape.spoil()
        for function, args, kwargs, made in self._calls:
            again = tensors(function(*args, **kwargs))
            for buffer, value in zip(made, again if made else (), strict=bool(made)):
                buffer.copy_(value)

    def spoil(self) -> None:
        for tensor in self._own.values():
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """All that are recorded."""
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


def test_what_waits_for_the_device_cannot_be_captured(tapes: list[Tape]) -> None:
    call = GraphedCall(lambda x: x * x.sum().item(), pool=object())
    with pytest.raises(CaptureError, match="not permitted"):
        call(torch.ones(3))


def test_a_fixed_input_is_read_where_it_lies(tapes: list[Tape]) -> None:
    call = GraphedCall(lambda x: x + 1, pool=object(), fixed=(0,))
    buffer = torch.zeros(3)
    call(buffer)
    buffer.fill_(5)
    assert torch.equal(call(buffer), torch.full((3,), 6.0))
    with pytest.raises(AssertionError, match="moved"):
        call(buffer.clone())


def test_the_network_by_graphs_is_the_network(tapes: list[Tape], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures, depth maps and focal lengths in turn: nothing of one is left in another."""
    monkeypatch.setattr("sharp_cog.runtime.graphs._NUM_WARM_UPS", 0)
    runner = SharpRunner(Weights(state=state("tiny"), is_folded=False), device=CPU, dtype=torch.float32)
    reference = Reference.load("tiny")
    image, factor = reference.image, reference.disparity_factor
    other = image.flip(3)
    depth = torch.linspace(1, 5, image.shape[-1]).expand(1, 1, *image.shape[-2:])
    calls: list[tuple[str, Tensor, Tensor, Tensor | None]] = [
        ("a", image, factor, None),
        ("b", other, factor, depth),
        ("b", other, 2 * factor, None),
    ]

    def predicted() -> list[NDCGaussians]:
        with torch.inference_mode():
            return [
                runner(picture, disparity_factor, depth_m, DepthUse(mode="ratio"), image_key=key)
                for key, picture, disparity_factor, depth_m in calls
            ]

    expected = predicted()
    runner._uses_graphs = True
    for given, exact in zip(predicted(), expected, strict=True):
        for field in fields(NDCGaussians):
            assert torch.equal(getattr(given, field.name), getattr(exact, field.name)), field.name
    assert runner.counters.graph_failures == 0
    assert runner.counters.reused_encodings == 2
    assert [tape.num_replays for tape in tapes] == [2, 3]

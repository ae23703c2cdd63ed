"""A function whose shapes never change, captured once as a CUDA graph: one launch in place of a thousand."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

_NUM_WARM_UPS = 2
"""Calls before the capture, so that cuDNN has chosen its algorithms and every lazy set-up is done."""


class CaptureError(RuntimeError):
    """The function did something that a graph cannot hold; called as it is, it works."""


class GraphedCall:
    """Calls a function of tensors; from the first call on, by replaying its CUDA graph.

    The outputs are the graph's own buffers: the next call overwrites them, as does any other graph of the same pool
    that was captured before this one.
    """

    def __init__(self, function: Callable[..., Any], *, pool: Any, fixed: Collection[int] = ()) -> None:
        """Captures nothing yet.

        Args:
            function: Takes tensors of fixed shapes on one CUDA device, and never waits for the device.
            pool: `torch.cuda.graph_pool_handle()`, of the memory that graphs share.
            fixed: Positions of inputs that always are the same buffer, such as another graph's output: they are read
                where they lie. All others are copied.
        """
        self._function, self._pool, self._fixed = function, pool, fixed
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: Any = None

    def __call__(self, *inputs: Tensor) -> Any:
        """As the function.

        Raises:
            CaptureError: It cannot be captured.
        """
        if self._graph is None:
            self._capture(inputs)
        for position, (buffer, value) in enumerate(zip(self._inputs, inputs, strict=True)):
            if position in self._fixed:
                assert buffer.data_ptr() == value.data_ptr(), "a fixed input has moved"
            else:
                buffer.copy_(value)
        assert self._graph is not None
        self._graph.replay()
        return self._outputs

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(
            value if position in self._fixed else value.clone() for position, value in enumerate(inputs)
        )
        device = inputs[0].device
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(_NUM_WARM_UPS):
                self._function(*self._inputs)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads go on encoding meanwhile: what they do is no concern of the capture.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                self._outputs = self._function(*self._inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise CaptureError(str(error)) from error
        self._graph = graph

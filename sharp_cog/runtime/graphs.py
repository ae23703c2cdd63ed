"""Functions of tensors of fixed shapes as CUDA graphs: one launch in place of a thousand."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

_NUM_WARM_UPS = 2
"""Number of calls before the capture, in which cuDNN chooses its algorithms and libraries initialise themselves."""


class CaptureError(RuntimeError):
    """The function did something that a CUDA graph cannot contain. Without a graph, it works."""


class GraphedCall:
    """A function of tensors that is captured as a CUDA graph at its first call, and replayed from then on.

    The outputs are the graph's own buffers. The next call overwrites them, and so does any graph that was captured
    earlier in the same pool.
    """

    def __init__(self, function: Callable[..., Any], *, pool: Any, fixed: Collection[int] = ()) -> None:
        """Keep the function; the first call captures it.

        Args:
            function: Function of tensors of fixed shapes on one CUDA device, which never waits for the device.
            pool: Memory that graphs share, from `torch.cuda.graph_pool_handle()`.
            fixed: Positions of inputs that are the same buffer in every call, such as another graph's output. All
                other inputs are copied.
        """
        self._function, self._pool, self._fixed = function, pool, fixed
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: Any = None

    def __call__(self, *inputs: Tensor) -> Any:
        """Return what the function returns.

        Raises:
            CaptureError: The function cannot be captured.
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
        # A replay reads the addresses that were captured, so every input that may lie elsewhere next time gets a
        # buffer.
        self._inputs = tuple(
            value if position in self._fixed else value.clone() for position, value in enumerate(inputs)
        )
        # CUDA cannot capture its default stream, so the function runs on another one. That stream waits until the
        # inputs have been written, and the current stream waits for the warm-up.
        device = inputs[0].device
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(_NUM_WARM_UPS):
                self._function(*self._inputs)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads write files meanwhile. In the default mode, their CUDA calls would end the capture.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                self._outputs = self._function(*self._inputs)
        except torch.OutOfMemoryError:
            # This is no fault of the function: the runner answers a shortage by cutting the work into smaller parts.
            raise
        except RuntimeError as error:
            raise CaptureError(str(error)) from error
        self._graph = graph

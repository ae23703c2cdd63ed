"""A device that fails, simulated on the CPU in the layer that every operation of torch passes through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sharp_cog.config.settings import Settings
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.pipeline.request import Request
from sharp_cog.runtime.lift import LiftPredictor

SHORTAGES: dict[str, Callable[[], Exception]] = {
    "torch": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "driver": lambda: RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    "cuBLAS": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "triton": lambda: RuntimeError("Triton Error [CUDA]: out of memory"),
    "CPU": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"
    ),
    "Python": MemoryError,
}
"""Errors for a shortage of memory, by their source. The next operation works."""

FAILURES: dict[str, Callable[[], Exception]] = {
    "runtime": lambda: RuntimeError("CUDA error: an illegal memory access was encountered"),
    "assert": lambda: RuntimeError("CUDA error: device-side assert triggered"),
    "cuBLAS": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
    "cuDNN": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    "triton": lambda: RuntimeError("Triton Error [CUDA]: unspecified launch failure"),
}
"""Errors for failures after which no operation works, by their source."""


class FailingDevice(TorchDispatchMode):
    """Counts the operations in its block, and raises an error at one of them.

    Attributes:
        num_operations: Operations so far.
        fail_at: Number of the operation that fails, from 0; None means none.
        error: Maker of the error.
        is_sticky: Whether all later operations fail too, as after a CUDA error.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_operations = 0
        self.fail_at: int | None = None
        self.error: Callable[[], Exception] = SHORTAGES["torch"]
        self.is_sticky = False

    def fail(self, at: int, error: Callable[[], Exception], *, is_sticky: bool = False) -> None:
        """Fail at an operation, counted from now."""
        self.num_operations, self.fail_at, self.error, self.is_sticky = 0, at, error, is_sticky

    def repair(self) -> None:
        self.fail_at = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        number, self.num_operations = self.num_operations, self.num_operations + 1
        if self.fail_at is not None and (number == self.fail_at or (self.is_sticky and number > self.fail_at)):
            raise self.error()
        return func(*args, **(kwargs or {}))


def small_pipeline(image_size: int = 64) -> SharpPipeline:
    """Return a pipeline that lifts small images, which takes milliseconds."""
    cpu = torch.device("cpu")
    return SharpPipeline(
        LiftPredictor(device=cpu, image_size=image_size), device=cpu, settings=Settings(model="lift", device="cpu")
    )


class OnFailingDevice(SharpPipeline):
    """A pipeline that predicts on a failing device."""

    def __init__(self, pipeline: SharpPipeline) -> None:
        super().__init__(pipeline.predictor, device=pipeline.device, settings=pipeline.settings)
        self.failing = FailingDevice()

    def predict(self, request: Request) -> Prediction:
        with self.failing:
            return super().predict(request)

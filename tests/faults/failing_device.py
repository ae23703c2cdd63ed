"""A device that fails, on the CPU: in the layer that every operation of torch goes through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sharp_cog.config.settings import Settings
from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.model.external_depth import DEFAULT_USE, DepthUse
from sharp_cog.model.lift import Lift
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.pipeline.prediction import Decoded, Prediction

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
"""How shortages of memory are told; the next operation works."""

FAILURES: dict[str, Callable[[], Exception]] = {
    "runtime": lambda: RuntimeError("CUDA error: an illegal memory access was encountered"),
    "assert": lambda: RuntimeError("CUDA error: device-side assert triggered"),
    "cuBLAS": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"),
    "cuDNN": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    "triton": lambda: RuntimeError("Triton Error [CUDA]: unspecified launch failure"),
}
"""How failures are told after which nothing works."""


class FailingDevice(TorchDispatchMode):
    """Counts the operations in its block, and raises at one of them.

    Attributes:
        num_operations: So far.
        fail_at: Number of the operation that fails, from 0; None, and all work.
        error: What it raises.
        is_sticky: Whether all that come after it fail too, as after a CUDA error.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_operations = 0
        self.fail_at: int | None = None
        self.error: Callable[[], Exception] = SHORTAGES["torch"]
        self.is_sticky = False

    def fail(self, at: int, error: Callable[[], Exception], *, is_sticky: bool = False) -> None:
        """Fails at an operation, counted from now."""
        self.num_operations, self.fail_at, self.error, self.is_sticky = 0, at, error, is_sticky

    def mend(self) -> None:
        self.fail_at = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        number, self.num_operations = self.num_operations, self.num_operations + 1
        if self.fail_at is not None and (number == self.fail_at or (self.is_sticky and number > self.fail_at)):
            raise self.error()
        return func(*args, **(kwargs or {}))


class SmallLift(Lift):
    """Lifts one pixel of 24 x 24: all that happens on a device, in a moment."""

    def forward(
        self,
        image: Tensor,
        disparity_factor: Tensor,
        depth: Tensor | None = None,
        use: DepthUse = DEFAULT_USE,
        on_monodepth: Callable[[Tensor], None] | None = None,
    ) -> NDCGaussians:
        small_depth = None if depth is None else F.avg_pool2d(depth, 24)
        return super().forward(F.avg_pool2d(image, 24), disparity_factor, small_depth, use, on_monodepth)


def small_pipeline() -> SharpPipeline:
    """A pipeline that needs no weights, but a depth map."""
    return SharpPipeline(SmallLift(), device=torch.device("cpu"), settings=Settings(model="lift", device="cpu"))


class OnFailingDevice(SharpPipeline):
    """A pipeline whose predictions run on one."""

    def __init__(self, pipeline: SharpPipeline) -> None:
        super().__init__(pipeline.predictor, device=pipeline.device, settings=pipeline.settings)
        self.failing = FailingDevice()

    def predict(self, decoded: Decoded) -> Prediction:
        with self.failing:
            return super().predict(decoded)

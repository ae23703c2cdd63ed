"""Devices: finding one, waiting for it, and translating its errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sharp_cog.errors import DeviceError, PredictionError, SettingError

_SHORTAGES = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
"""Texts by which the CUDA runtime, cuBLAS, cuDNN and the CPU's allocator report that no memory is left."""
_FAILURES = ("CUDA error", "CUDA driver error", "cuDNN error", "Triton Error [CUDA]")
"""Beginnings of errors of the device itself. Most are reported late, and make the process's context unusable."""


def find_device(name: str) -> torch.device:
    """Return the torch device of a name; `auto` is CUDA, else MPS, else the CPU.

    Raises:
        SettingError: The machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingError(f"SHARP_DEVICE is {name!r}: choose auto, cpu, cuda, cuda:N or mps") from error
    # `torch.device` accepts every type and index that it can parse, whether or not the machine has such a device.
    exists = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not exists.get(device.type, False):
        present = ", ".join(name for name, is_present in exists.items() if is_present)
        raise SettingError(f"SHARP_DEVICE is {name!r}, but torch {torch.__version__} finds only: {present}")
    return device


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all the work that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def synchronize_stream(device: torch.device) -> None:
    """Wait for the work on the calling thread's own stream; other streams keep running."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    else:
        synchronize(device)


def is_shortage(error: BaseException) -> bool:
    """Report whether an error means that memory ran out: the operation did not run, and the device still works."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # Only the CUDA allocator has an exception class for this. The other libraries raise a plain RuntimeError.
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in _SHORTAGES)


@contextmanager
def translate_errors(device: torch.device) -> Iterator[None]:
    """Translate the exceptions that torch raises for a failing device.

    Raises:
        PredictionError: The device ran out of memory.
        DeviceError: The device failed, and will not work again in this process.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # Shortages come first, because the driver reports them as a "CUDA error" too.
        if is_shortage(error):
            remedy = "" if device.type == "cpu" else ", or set SHARP_DEVICE=cpu"
            raise PredictionError(
                f"the device {device} ran out of memory: close other programs that use it{remedy}"
            ) from error
        if any(mark in str(error) for mark in _FAILURES):
            raise DeviceError(f"the device {device} failed: restart the process: {error}") from error
        raise

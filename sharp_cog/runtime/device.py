"""Devices: which there are, their start, waiting for them, and what they fail with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sharp_cog.errors import DeviceError, PredictionError, SettingError

_SHORTAGES = ("out of memory", "ALLOC_FAILED", "can't allocate memory")
"""How the CUDA runtime, cuBLAS and cuDNN, and the CPU's allocator tell that there is no memory left."""
_FAILURES = ("CUDA error", "CUDA driver error", "cuDNN error", "Triton Error [CUDA]")
"""How errors begin that a device made. Most come late, of work before, and spoil the process's context for good."""


def find_device(name: str) -> torch.device:
    """The torch device of that name; `auto` is CUDA, else MPS, else the CPU.

    Raises:
        SettingError: There is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingError(f"SHARP_DEVICE is {name!r}: choose auto, cpu, cuda, cuda:N or mps") from error
    is_there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not is_there.get(device.type, False):
        present = ", ".join(type_ for type_, there in is_there.items() if there)
        raise SettingError(f"SHARP_DEVICE is {name!r}, but torch {torch.__version__} finds only: {present}")
    return device


def synchronize(device: torch.device) -> None:
    """Waits until a device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def synchronize_stream(device: torch.device) -> None:
    """Wait for the work on the calling thread's own stream; other streams may go on."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    else:
        synchronize(device)


def is_shortage(error: BaseException) -> bool:
    """Whether an error tells that memory ran out; what was asked for did not happen, and nothing is broken."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in _SHORTAGES)


@contextmanager
def translate_errors(device: torch.device) -> Iterator[None]:
    """Turns what torch raises where a device fails into errors of ours.

    Raises:
        PredictionError: The device ran out of memory.
        DeviceError: The device failed; nothing more will work in this process.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_shortage(error):
            remedy = "" if device.type == "cpu" else ", or set SHARP_DEVICE=cpu"
            raise PredictionError(f"the device {device} ran out of memory: close what else uses it{remedy}") from error
        if any(mark in str(error) for mark in _FAILURES):
            raise DeviceError(f"the device {device} failed: start the process anew: {error}") from error
        raise

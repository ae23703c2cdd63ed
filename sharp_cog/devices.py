"""Devices: which there are, their start, and waiting for them."""

from __future__ import annotations

import torch

from sharp_cog.errors import SettingError
from sharp_cog.kernels.choose import fused_for


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


def start(device: torch.device) -> None:
    """Does what a device's first use takes seconds for."""
    if device.type == "cuda":
        torch.empty(1, device=device)
        fused_for(device)


def synchronize(device: torch.device) -> None:
    """Waits until a device has done all that it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()

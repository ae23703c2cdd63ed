"""The choice of a floating-point type for a device, and exact arithmetic in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sharp_cog.errors import SettingError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Floating-point types by their names in the setting `precision`."""


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a type in the setting `precision`."""
    return next(name for name, other in DTYPES.items() if other == dtype)


def choose(precision: str, device: torch.device) -> torch.dtype:
    """Return the type that a setting means on a device.

    `auto` is float16 on CUDA, which is eight times closer to float32 than bfloat16 at the same speed; bfloat16 on a CPU
    with instructions for it (AVX512-BF16 or AMX); float32 anywhere else.

    Args:
        precision: `auto`, or a name in `DTYPES`.
        device: Device of the network.

    Raises:
        SettingError: The device lacks the type, or emulates it too slowly.
    """
    if precision == "auto":
        if device.type == "cuda":
            return torch.float16
        return torch.bfloat16 if device.type == "cpu" and cpu_has_bfloat16() else torch.float32
    dtype = DTYPES[precision]
    if device.type == "cpu" and (dtype == torch.float16 or (dtype == torch.bfloat16 and not cpu_has_bfloat16())):
        able = "float32 or bfloat16" if cpu_has_bfloat16() else "float32"
        raise SettingError(f"SHARP_PRECISION is {precision!r}, for which this CPU has no instructions: choose {able}")
    # Compute capability 8.0, Ampere, is the first with bfloat16.
    if device.type == "cuda" and dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) < (8, 0):
        name = torch.cuda.get_device_name(device)
        raise SettingError(f"SHARP_PRECISION is 'bfloat16', which {name} does not have: choose float16 or float32")
    return dtype


@contextmanager
def exact_sums(device: torch.device, *, is_lasting: bool = True) -> Iterator[None]:
    """Compute float32 with all its digits, and every sum of half-precision products in float32, while the block runs.

    By default, cuDNN rounds float32 to a mantissa of 10 bits (tf32), and cuBLAS adds partial sums in half precision.

    Args:
        device: Device of the network.
        is_lasting: Whether the same shapes will occur again. If so, cuDNN measures on CUDA which of its algorithms is
            the fastest, once for each shape.
    """
    # The flags hold for the whole process, so they are put back. There is none for float32 matrix products, which torch
    # does not round to tf32 by default.
    flags = torch.backends.cuda.matmul
    before = flags.allow_fp16_reduced_precision_reduction, flags.allow_bf16_reduced_precision_reduction
    flags.allow_fp16_reduced_precision_reduction = flags.allow_bf16_reduced_precision_reduction = False
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=is_lasting and device.type == "cuda", allow_tf32=False):
            yield
    finally:
        flags.allow_fp16_reduced_precision_reduction, flags.allow_bf16_reduced_precision_reduction = before


def cpu_has_bfloat16() -> bool:
    """Report whether the CPU multiplies bfloat16 matrices faster than float32 ones."""
    return bool(torch.cpu._is_avx512_bf16_supported() or cpu_has_amx())


def cpu_has_amx() -> bool:
    """Report whether the CPU multiplies whole tiles of bfloat16 at once (AMX), as Intel's do since 2023."""
    return bool(torch.cpu._is_amx_tile_supported())

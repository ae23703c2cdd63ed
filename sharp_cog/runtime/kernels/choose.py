"""The choice between the fused kernels and their twins."""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType

import torch

from sharp_cog.runtime.device import is_shortage, synchronize
from sharp_cog.text import reason_of

_LOG = logging.getLogger(__name__)


def fused_for(device: torch.device) -> ModuleType | None:
    """Return the fused kernels if the device runs them (CUDA, with triton); None means their plain twins.

    The first call for a device builds and tries the kernels, which takes seconds.

    Raises:
        RuntimeError: The device ran out of memory, or failed, during the trial.
    """
    return _fused(device) if device.type == "cuda" else None


@cache
def _fused(device: torch.device) -> ModuleType | None:
    try:
        from sharp_cog.runtime.kernels import fused
    except ImportError as error:
        _LOG.warning("triton is not installed (%s): unprojection and packing take milliseconds more", error)
        return None
    try:
        fused.try_out(device)
    # Triton runs a C compiler and writes to a cache in the home folder, so its errors have no common base class.
    except Exception as error:
        if is_shortage(error):
            raise
        synchronize(device)  # Raises if the cause was a failure of the device.
        _LOG.warning(
            "triton cannot build the fused kernels (%s): unprojection and packing take milliseconds more. It needs "
            "gcc, Python's headers and a folder to write to (TRITON_CACHE_DIR)",
            reason_of(error),
        )
        return None
    return fused

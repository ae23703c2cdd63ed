"""Which kernels a device gets."""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType

import torch

_LOG = logging.getLogger(__name__)


def fused_for(device: torch.device) -> ModuleType | None:
    """The fused kernels where the device runs them (CUDA, with triton); None means their plain twins."""
    return _fused() if device.type == "cuda" else None


@cache
def _fused() -> ModuleType | None:
    try:
        from sharp_cog.kernels import fused
    except ImportError as error:
        _LOG.warning("triton is not there (%s): unprojection and packing take milliseconds more", error)
        return None
    return fused

"""Tweaks of the process that sharp_cog runs in: huge pages, and glibc's memory allocator."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Mapping, MutableMapping
from functools import cache

_M_ARENA_MAX = -8
"""Parameter of `mallopt`, from glibc's malloc.h."""


def use_huge_pages(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let torch ask the system for huge pages, unless the environment says otherwise.

    The network's feature maps take hundreds of megabytes each and are allocated again for every prediction. In pages of
    4 kB, a CPU spends as much time on the page faults as on the computation. The call must come before torch's first
    tensor, since torch reads the variable once.
    """
    # torch's CPU allocator reads the variable, and then calls `madvise` for large blocks.
    environment.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def use_one_arena(environment: Mapping[str, str] = os.environ) -> None:
    """Let all threads share one arena of glibc's malloc, unless the environment says otherwise.

    Services call it before they start threads. Each thread holds whole splats at times, and glibc would keep hundreds
    of megabytes of freed memory in an arena of each. Other allocators are left alone.
    """
    if "MALLOC_ARENA_MAX" in environment or sys.platform != "linux":
        return
    # `CDLL(None)` is the process itself. Under musl it has no `mallopt`.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Return free memory to the system, within milliseconds; does nothing where the allocator is not glibc's.

    A service frees arrays of some megabytes in another order than it allocated them. glibc keeps the gaps between the
    blocks that are still in use, so that the heap grows by a third and more over hundreds of requests.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None

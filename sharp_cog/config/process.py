"""Changes to the process itself: environment variables that torch reads, and glibc's memory allocator."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Mapping, MutableMapping
from functools import cache

_M_ARENA_MAX = -8
"""Of glibc's malloc.h."""


def use_huge_pages(environment: MutableMapping[str, str] = os.environ) -> None:
    """Lets torch ask the system for huge pages, unless the environment says otherwise; before its first tensor of all.

    The network's feature maps are hundreds of megabytes each, made and freed at every prediction. Getting such memory
    in pages of 4 kB takes a CPU as long as the work on it.
    """
    environment.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def use_one_arena(environment: Mapping[str, str] = os.environ) -> None:
    """Lets all threads of the process share one arena of glibc's malloc, unless the environment says otherwise.

    For services, before their threads start: each of these holds whole splats at times, and glibc would keep hundreds
    of megabytes of freed memory for each. Where there is another malloc, nothing is done.
    """
    if "MALLOC_ARENA_MAX" in environment or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Gives free memory back to the system, in some milliseconds; nothing where the heap is not glibc's.

    A service frees arrays of some megabytes in another order than it has made them. What lies between those in use
    stays with the process, and the heap grows for hundreds of requests, by a third and more, before it ends to.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None

"""What has been freed, and glibc's malloc keeps."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache


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

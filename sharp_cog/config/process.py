"""Tweaks of the process that sharp_cog runs in: huge pages, and glibc's memory allocator."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Mapping, MutableMapping
from functools import cache
from pathlib import Path

MAX_DESCRIPTORS = 65_536
"""Maximum number of descriptors that a process asks for."""
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


def raise_descriptor_limit() -> int:
    """Raise the number of files and connections that the process may have open, as far as the system allows.

    Returns:
        The number.
    """
    if sys.platform == "win32":
        return MAX_DESCRIPTORS
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = MAX_DESCRIPTORS if hard == unlimited else min(hard, MAX_DESCRIPTORS)
    if soft != unlimited and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError):  # macOS has a lower limit than the one that it names.
            pass
    return MAX_DESCRIPTORS if soft == unlimited else soft


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory that the process could still allocate, within the limits of its container.

    Args:
        root: Root of the file systems `proc` and `sys`.

    Returns:
        None if the system does not say.
    """
    found = []
    with contextlib.suppress(OSError):
        fields = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines())
        found.append(1024 * int(fields["MemAvailable"].split()[0]))
    # Version 2 of control groups, then version 1. A limit that is not set is `max`, or larger than any machine.
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):
            folder = root / "sys/fs/cgroup"
            found.append(max(0, int((folder / limit).read_text()) - int((folder / used).read_text())))
    return min(found, default=None)


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

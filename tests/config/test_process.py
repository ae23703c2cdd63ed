"""Freed memory goes back to the system, and threads share one arena."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from sharp_cog.config import process as memory

PROGRAM = """\
import ctypes
import psutil
from sharp_cog.config.process import give_back

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD: everything from the heap.
blocks = [libc.malloc(ctypes.c_size_t(1 << 20)) for _ in range(200)]
for block in blocks:
    ctypes.memset(block, 1, 1 << 20)
for block in blocks[:-1]:  # The last one holds the heap where it is.
    libc.free(ctypes.c_void_p(block))
before = psutil.Process().memory_info().rss
give_back()
print(before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_free_memory_between_blocks_in_use_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 150 << 20


def test_another_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    memory._malloc_trim.cache_clear()
    try:
        assert memory._malloc_trim() is None
        memory.give_back()
    finally:
        memory._malloc_trim.cache_clear()


ARENAS = """\
import ctypes, threading
from sharp_cog.config.process import use_one_arena
use_one_arena()
libc, barrier = ctypes.CDLL(None), threading.Barrier(4)
libc.malloc.restype = ctypes.c_void_p
def work():
    barrier.wait()
    assert libc.malloc(ctypes.c_size_t(100_000))
    barrier.wait()
threads = [threading.Thread(target=work) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc.malloc_stats()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")
@pytest.mark.parametrize(
    ("environment", "has_one"), [({}, True), ({"MALLOC_ARENA_MAX": "4"}, False)], ids=["default", "given"]
)
def test_threads_share_one_arena_unless_the_environment_says_otherwise(
    environment: dict[str, str], has_one: bool
) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", ARENAS]
    stats = subprocess.run(command, env={**inherited, **environment}, capture_output=True, text=True, check=True).stderr
    assert (stats.count("Arena ") == 1) == has_one, stats

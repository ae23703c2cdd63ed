"""Ports, memory and children of servers in their own processes."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import psutil

_T = TypeVar("_T")


def free_port() -> int:
    """Return a port of loopback on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def processes_of(pid: int) -> list[psutil.Process]:
    """Return a process and all of its descendants."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def ask_all(processes: Sequence[psutil.Process], question: Callable[[psutil.Process], _T]) -> Iterator[_T]:
    """Yield the answer of each process, except those that have ended meanwhile, such as an ffmpeg."""
    for process in processes:
        try:
            yield question(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue


def anonymous_bytes(pid: int) -> int:
    """Return the resident memory of a process tree, without pages of files, which the kernel can drop."""
    memory = ask_all(processes_of(pid), lambda process: process.memory_info())
    return sum(info.rss - info.shared for info in memory)

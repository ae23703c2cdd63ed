"""What a server that runs as processes of its own uses."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import psutil

_T = TypeVar("_T")


def free_port() -> int:
    """A port of loopback on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def processes_of(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def told_by(processes: Sequence[psutil.Process], question: Callable[[psutil.Process], _T]) -> Iterator[_T]:
    """What each of them answers, but for those that have ended since, such as an ffmpeg whose film is done."""
    for process in processes:
        try:
            yield question(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue


def anonymous_bytes(pid: int) -> int:
    """Resident memory of a process and all below it, without pages of files: the kernel drops and reads those."""
    memory = told_by(processes_of(pid), lambda process: process.memory_info())
    return sum(info.rss - info.shared for info in memory)

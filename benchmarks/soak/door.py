"""What the soak needs of a server: to be asked, and to be looked at."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from benchmarks.soak.mix import Case, Fault
from tests.e2e.processes import anonymous_bytes, processes_of, told_by

ANSWER_SECONDS = 300.0
"""A request that takes longer hangs, which counts as a wrong answer."""

_FAULT = re.compile(r"Traceback|panicked|unhandled|Exception in|never retrieved|never awaited|ResourceWarning")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a request.

    Attributes:
        outcome: `ok`, `cancelled`, or how it was refused: a status, or `failed`, and a code.
        digest: Of what was answered, as `right.digest_of`; empty where it was not `ok`.
        is_silent: Whether the server did not answer in time.
    """

    outcome: str
    digest: str = ""
    is_silent: bool = False


@dataclass(frozen=True, kw_only=True)
class State:
    """What a server holds while nothing is asked of it.

    Attributes:
        num_fds: Open file descriptors of all its processes.
        num_threads: Their threads.
        num_processes: How many there are.
        num_zombies: Those among them that have ended and were not waited for.
        files: Bytes of each file in its folders, by path.
    """

    num_fds: int
    num_threads: int
    num_processes: int
    num_zombies: int
    files: dict[str, int]


class Door(Protocol):
    """A server under load."""

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def moments(self) -> Sequence[str]:
        """At which a request can be given up."""

    def faults(self) -> list[Fault]:
        """All faults that it can be shown."""

    def ask(self, case: Case) -> Answer:
        """Sends one request of the mix to its end."""

    def memory(self) -> int:
        """Bytes that it holds."""

    def state(self) -> State:
        """What it holds while nothing is asked of it."""

    def complaints(self, cases: Sequence[Case]) -> list[str]:
        """What the server itself tells of the requests, where it is not what was asked."""


def own_folders(folder: Path) -> dict[str, str]:
    """Environment variables by which whatever a server or a library caches lands below the folder."""
    (folder / "home").mkdir()
    return {
        "HOME": str(folder / "home"),
        "XDG_CACHE_HOME": str(folder / "home"),
        "SHARP_CACHE_DIR": str(folder / "cache"),
    }


def complaints_in(log: str) -> list[str]:
    """Lines of a log that tell of a fault of the server's own."""
    return [f"the log says: {line[:200]}" for line in log.splitlines() if _FAULT.search(line)]


class Started:
    """A server in processes of its own, to be looked at.

    Attributes:
        pid: Its first process.
        folder: All that it writes lies below.
    """

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self.folder = pid, folder

    def memory(self) -> int:
        """Anonymous memory of all its processes.

        Resident memory would count pages of the libraries and of files being written, which the kernel takes and gives
        as it likes; anonymous pages are what the processes have allocated and not given back. (USS is nearly the same,
        but walks all page tables for it, which takes tens of milliseconds of a server that has gigabytes.)
        """
        return anonymous_bytes(self.pid)

    def state(self) -> State:
        """What it holds now."""
        processes = processes_of(self.pid)
        return State(
            num_fds=sum(told_by(processes, lambda process: process.num_fds())),
            num_threads=sum(told_by(processes, lambda process: process.num_threads())),
            num_processes=len(processes),
            num_zombies=list(told_by(processes, lambda process: process.status())).count(psutil.STATUS_ZOMBIE),
            files=dict(self._files()),
        )

    def _files(self) -> Iterator[tuple[str, int]]:
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.name != "server.log":
                with contextlib.suppress(FileNotFoundError):  # It was just being deleted.
                    yield str(path.relative_to(self.folder)), path.stat().st_size

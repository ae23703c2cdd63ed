"""The interface of a server under soak: it answers requests and reports its state."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from benchmarks.soak.mix import Case, Fault
from tests.e2e.processes import anonymous_bytes, ask_all, processes_of

ANSWER_SECONDS = 300.0
"""Time limit of a request. A longer one hangs, which counts as a wrong answer."""

_FAULT = re.compile(r"Traceback|panicked|unhandled|Exception in|never retrieved|never awaited|ResourceWarning")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Result of a request.

    Attributes:
        outcome: `ok`, `cancelled`, or the refusal: a status, or `failed`, and a code.
        digest: Digest of the answer, by `right.digest_of`; empty unless the outcome is `ok`.
        is_silent: Whether the server did not answer in time.
    """

    outcome: str
    digest: str = ""
    is_silent: bool = False


@dataclass(frozen=True, kw_only=True)
class State:
    """Resources of a server without a request.

    Attributes:
        num_fds: Number of open file descriptors of all its processes.
        num_threads: Number of threads.
        num_processes: Number of processes.
        num_zombies: Number of processes that have ended and were not waited for.
        files: Size in bytes of each file in its folders, by path.
    """

    num_fds: int
    num_threads: int
    num_processes: int
    num_zombies: int
    files: dict[str, int]


class Server(Protocol):
    """A server under load."""

    @property
    def name(self) -> str:
        """Name of the server in reports."""

    @property
    def moments(self) -> Sequence[str]:
        """Moments at which a request can be cancelled."""

    def faults(self) -> list[Fault]:
        """Return all faults of requests to this server."""

    def ask(self, case: Case) -> Answer:
        """Send one request of the mix, and wait for its end."""

    def memory(self) -> int:
        """Return the bytes of memory that the server uses."""

    def state(self) -> State:
        """Return the resources of the server, without a request."""

    def complaints(self, cases: Sequence[Case]) -> list[str]:
        """Return the errors in the server's log, and the differences between its metrics and the requests."""


def own_folders(folder: Path) -> dict[str, str]:
    """Return environment variables that send the caches of the server and its libraries into the folder."""
    (folder / "home").mkdir()
    return {
        "HOME": str(folder / "home"),
        "XDG_CACHE_HOME": str(folder / "home"),
        "SHARP_CACHE_DIR": str(folder / "cache"),
    }


def complaints_in(log: str) -> list[str]:
    """Return the lines of a log that report an internal error."""
    return [f"the log says: {line[:200]}" for line in log.splitlines() if _FAULT.search(line)]


class Started:
    """A server in its own processes.

    Attributes:
        pid: Id of its first process.
        folder: Folder of all files that it writes.
    """

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self.folder = pid, folder

    def memory(self) -> int:
        """Return the anonymous memory of all its processes.

        Resident memory would also count pages of libraries and files, which the kernel adds and drops as it likes.
        Anonymous pages are what the processes have allocated and not freed. USS is nearly the same, but it walks all
        page tables, which takes tens of milliseconds for a server with gigabytes.
        """
        return anonymous_bytes(self.pid)

    def state(self) -> State:
        """Return its resources."""
        processes = processes_of(self.pid)
        return State(
            num_fds=sum(ask_all(processes, lambda process: process.num_fds())),
            num_threads=sum(ask_all(processes, lambda process: process.num_threads())),
            num_processes=len(processes),
            num_zombies=list(ask_all(processes, lambda process: process.status())).count(psutil.STATUS_ZOMBIE),
            files=dict(self._files()),
        )

    def _files(self) -> Iterator[tuple[str, int]]:
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.name != "server.log":
                with contextlib.suppress(FileNotFoundError):  # The server has just deleted it.
                    yield str(path.relative_to(self.folder)), path.stat().st_size

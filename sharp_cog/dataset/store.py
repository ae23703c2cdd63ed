"""The interface of a shared store: files that many clients read and change at once, in a folder or on the hub.

Leases, ranges and publishing build on it. Every change is a compare-and-swap: look at the files, decide, write; start
over if another client wrote in between. A decision must come out the same when its own change has been made already,
because the answer to a change may be lost on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

_T = TypeVar("_T")

MAX_TRIES = 30
"""Maximum tries of one change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Put:
    """Writes a file, or replaces it.

    Attributes:
        path: Path in the store, with `/` between folders.
        content: The bytes, or the path of a local file that holds them.
    """

    path: str
    content: bytes | Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Delete:
    """Deletes an existing file."""

    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """The operations that a decision wants.

    Attributes:
        operations: Writes and deletions; if empty, nothing is written.
        message: Reason for the change, for the history.
    """

    operations: Sequence[Put | Delete]
    message: str


class View(Protocol):
    """The files at one moment."""

    def now(self) -> float:
        """Return Unix time by a clock that all clients share, whatever their own clocks say."""
        ...

    def existing(self, paths: Collection[str]) -> set[str]:
        """Return those of the paths that are files."""
        ...

    def names(self, folder: str) -> set[str]:
        """Return the names in a folder; none if the folder does not exist."""
        ...

    def read(self, path: str) -> bytes | None:
        """Return the content of a file, or None if it does not exist."""
        ...


class Store(Protocol):
    """Files that many clients share."""

    def change(self, decide: Callable[[View], tuple[Change, _T]]) -> _T:
        """Look, decide and write, until no other client wrote in between.

        Args:
            decide: Returns the change, and the value to return once it is made. Called again for every try.

        Raises:
            SharpError: Too many tries failed, or the store refuses the change.
        """
        ...

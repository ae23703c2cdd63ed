"""Files that many clients see, and how they are changed at once: what claims, ranges and publishing stand on.

Every change is a compare-and-swap: look, decide by what is there, write; if somebody was faster, look again.
A decision must come out the same when its own change has been done already, so that an answer that was lost on the way
does no harm.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

_T = TypeVar("_T")

MAX_TRIES = 30
"""Of a change, before it is given up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Put:
    """Writes a file, over what is there.

    Attributes:
        path: Its place, with `/` between folders.
        content: Its bytes, or a file that holds them.
    """

    path: str
    content: bytes | Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Delete:
    """Deletes a file that is there."""

    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """What a decision wants written.

    Attributes:
        operations: None of them, and nothing is written.
        message: Why, for the history.
    """

    operations: Sequence[Put | Delete]
    message: str


class View(Protocol):
    """The files as they are at one moment."""

    def now(self) -> float:
        """Unix time by a clock that is the same for every client, whatever its own says."""
        ...

    def existing(self, paths: Collection[str]) -> set[str]:
        """Which of these files there are."""
        ...

    def names(self, folder: str) -> set[str]:
        """The names of what is in a folder; none where there is no folder."""
        ...

    def read(self, path: str) -> bytes | None:
        """A file's content; None where it is not."""
        ...


class Store(Protocol):
    """Files that many clients see."""

    def change(self, decide: Callable[[View], tuple[Change, _T]]) -> _T:
        """Looks, decides and writes, again and again until nobody came between.

        Args:
            decide: Gives what to write, and what to return once it is. Called anew at every try.

        Raises:
            SharpError: It did not work out after many tries, or never will.
        """
        ...

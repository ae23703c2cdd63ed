"""A photograph of a dataset, wherever it comes from, and what a source of them is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from sharp_cog.errors import SharpError

MAX_PICTURE_BYTES = 200_000_000
"""Larger pictures are not fetched."""

_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Photo:
    """What is known of a photograph before it is fetched.

    Attributes:
        id: Its name in the dataset: letters, digits, `_`, `-`, `.`; two photographs of a run never share one.
        where: What the source needs to fetch it: a path, or an address.
        depth: Path of a depth map for it; empty where there is none.
        offset: Its place in a list that is the same for everybody, from 0; None where there is no such list.
        row: Attribution and description, as rows of the index have them: all strings.

    Raises:
        ValueError: The id cannot be the name of a file.
    """

    id: str
    where: str
    depth: str = ""
    offset: int | None = None
    row: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ValueError(f"id is {self.id!r}: letters, digits, '_', '-' and '.' alone")


class Source(Protocol):
    """Where photographs come from.

    Attributes:
        num_photos: How many there are in all; None where nobody knows, or not yet.
    """

    @property
    def num_photos(self) -> int | None: ...

    def photos(self, is_known: Callable[[str], bool]) -> Iterator[Photo]:
        """Photographs, one after the other, as they are needed.

        Args:
            is_known: Whether the photograph of an id needs no more work; the source does not fetch what it can tell.

        Raises:
            SourceError: The source cannot be read; what was yielded before stands.
            RateLimitError: It may not be asked any more for a while.
        """
        ...

    def fetch(self, photo: Photo) -> bytes:
        """The photograph's bytes.

        Raises:
            SourceError: This photograph cannot be had.
            RateLimitError: The source may not be asked any more for a while.
        """
        ...


class SourceError(SharpError):
    """A source cannot give what it is asked for."""

    code = "source_failed"


class RateLimitError(SourceError):
    """A source may not be asked any more for a while."""

    code = "rate_limited"

    def __init__(self, message: str, *, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s

"""A photograph of a dataset, and the interface of a source of photographs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from sharp_cog.errors import SharpError

MAX_IMAGE_BYTES = 200_000_000
"""Size of the largest image that is fetched."""

# No dot at the beginning: such names are hidden, and temporary files have them.
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Photo:
    """A photograph before it is fetched.

    Attributes:
        id: Unique name in the dataset: letters, digits, `_`, `-`, `.`.
        where: Path or address from which the source fetches it.
        depth: Path of its depth map; empty if it has none.
        offset: Its place, from 0, in a list that is the same for every client; None if there is no such list.
        row: Attribution and description for the index: all strings.

    Raises:
        ValueError: The id cannot be a file name.
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
    """A source of photographs.

    Attributes:
        num_photos: Number of photographs in all; None if it is unknown, or not known yet.
    """

    @property
    def num_photos(self) -> int | None: ...

    def photos(self, is_known: Callable[[str], bool]) -> Iterator[Photo]:
        """Yield photographs as they are needed.

        Args:
            is_known: Returns whether the photograph with an id needs no more work, so that the source can skip it.

        Raises:
            SourceError: The source cannot be read; photographs yielded before remain valid.
            RateLimitError: The source may not be asked any more for a while.
        """
        ...

    def fetch(self, photo: Photo) -> bytes:
        """Return the photograph's bytes.

        Raises:
            SourceError: This photograph cannot be fetched.
            RateLimitError: The source may not be asked any more for a while.
        """
        ...


class SourceError(SharpError):
    """A source cannot deliver a photograph."""

    code = "source_failed"


class RateLimitError(SourceError):
    """A source may not be asked any more for a while."""

    code = "rate_limited"

    def __init__(self, message: str, *, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s

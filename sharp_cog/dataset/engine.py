"""What a run asks of engines, which make splats, and of those who share them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sharp_cog.dataset.photo import Photo


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A photograph whose picture is on disk."""

    photo: Photo
    image: Path


class Engine(Protocol):
    """What makes splats of pictures."""

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, dict[str, Any] | Exception]]:
        """Makes splats of jobs as they come, and gives what `sharp_cog.dataset.make.make` returns or raises for each.

        At most a few jobs are taken ahead.
        """
        ...


class Share(Protocol):
    """Shares one splat elsewhere; never fails the photograph."""

    def __call__(self, photo: Photo, splats: dict[str, Path]) -> dict[str, str]:
        """Returns what the index says of it."""
        ...

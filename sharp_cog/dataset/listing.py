"""Unsplash's list, oldest photographs first, read by many clients at once: each leases ranges of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.photo import Photo
from sharp_cog.dataset.ranges import Range, RangeProgress, Ranges
from sharp_cog.dataset.unsplash import Unsplash

_LOG = logging.getLogger(__name__)

_DONE = ("done", "others")
"""States of the journal in which a photograph needs no more work, by this client or by another one."""


@dataclass
class _Area:
    """A range that this client has a lease on.

    Attributes:
        range: The range.
        start: First place that was not done when the range was leased.
        ids: The photograph at each place that was looked at; None for an unusable one.
        is_scanned: Whether all places were looked at.
        page: Page of the list that was looked at last.
    """

    range: Range
    start: int
    ids: dict[int, str | None] = field(default_factory=dict)
    is_scanned: bool = False
    page: int = 0


class RangedList:
    """A source that yields the photographs of leased ranges and keeps the leases up to date.

    A range is done when every photograph in it is. A range with photographs that no splat could be made of is
    abandoned, with its holes on record.
    """

    def __init__(self, unsplash: Unsplash, ranges: Ranges, journal: Journal, *, max_scan: int) -> None:
        """Create the source; nothing is requested yet.

        Args:
            unsplash: The list.
            ranges: The leases.
            journal: The journal of the run, which knows what became of the photographs.
            max_scan: Maximum photographs to look at; 0 means no limit.
        """
        self._unsplash, self._ranges, self._journal = unsplash, ranges, journal
        self._max_scan = max_scan
        self._areas: list[_Area] = []
        self._mutex = threading.Lock()

    @property
    def num_photos(self) -> int | None:
        """Number of photographs in the list; None before the first answer."""
        return self._unsplash.num_photos

    @property
    def rate_limit_left(self) -> int | None:
        """Number of requests that Unsplash still allows in this hour; None before the first answer."""
        return self._unsplash.rate_limit_left

    def fetch(self, photo: Photo) -> bytes:
        """Return the image of a photograph; see `Source.fetch`."""
        return self._unsplash.fetch(photo)

    def photos(self, is_known: Callable[[str], bool]) -> Iterator[Photo]:
        """Yield the photographs of one range after another; see `Source.photos`."""
        num_scanned = 0
        # The first page reports the length of the list, so that no range beyond its end is leased.
        self._unsplash.page(1)
        while (acquired := self._ranges.acquire(self._unsplash.num_photos)) is not None:
            area = _Area(range=acquired[0], start=acquired[1])
            _LOG.info("leased the range %s of the list", area.range)
            with self._mutex:
                self._areas.append(area)
            size = self._ranges.page_size
            # Pages count from 1 and places from 0. A range that is continued begins within a page.
            for number in range(area.start // size + 1, area.range.end // size + 2):
                page = self._unsplash.page(number)
                area.page = number
                for index, photo in enumerate(page):
                    place = (number - 1) * size + index
                    if place < area.start:
                        continue
                    if self._max_scan and num_scanned >= self._max_scan:
                        return
                    num_scanned += 1
                    with self._mutex:
                        area.ids[place] = None if photo is None else photo.id
                    if photo is not None and not is_known(photo.id):
                        yield photo
                if len(page) < size:  # The list ends here but may grow, so that this range cannot be finished.
                    return
            area.is_scanned = True

    def heartbeat(self, is_over: bool) -> None:
        """Renew, finish, abandon or release the ranges, by what the journal says of their photographs.

        Args:
            is_over: Whether the run has ended, so that all ranges are released.
        """
        with self._mutex:
            areas = list(self._areas)
        for area in areas:
            if not self._keep(area, is_over):
                with self._mutex:
                    self._areas.remove(area)

    def _keep(self, area: _Area, is_over: bool) -> bool:
        """Update one range; return False if this client has released or lost it."""
        is_scanned = area.is_scanned  # Read before the places, since the scan goes on meanwhile.
        with self._mutex:
            ids = dict(area.ids)
        states = self._journal.states([photo_id for photo_id in ids.values() if photo_id is not None])
        # Places before the start were done by earlier clients. Unusable photographs count as done.
        is_done = dict.fromkeys(range(area.range.start, area.start), True)
        is_done |= {place: name is None or states.get(name) in _DONE for place, name in ids.items()}
        failed = sorted({name for name in ids.values() if name is not None and states.get(name) == "failed"})
        progress = RangeProgress.from_places(area.range, is_done, area.page)
        num_open = sum(not done for done in is_done.values())
        # Everything is done; or all that is left has failed; or the range goes on, here or at another client.
        if is_scanned and num_open == 0:
            _LOG.info("the range %s of the list is done", area.range)
            self._ranges.finish(area.range)
            return False
        if is_scanned and num_open == len(failed):
            others = f" and {len(failed) - 20} more" if len(failed) > 20 else ""
            reason = f"no splat could be made of {', '.join(failed[:20])}{others}"
            _LOG.warning("the range %s of the list is abandoned: %s", area.range, reason)
            self._ranges.abandon(area.range, progress, reason)
            return False
        if is_over:
            self._ranges.release(area.range, progress)
            return False
        if not self._ranges.heartbeat(area.range, progress):
            _LOG.warning("another client took over the range %s of the list", area.range)
            return False
        return True

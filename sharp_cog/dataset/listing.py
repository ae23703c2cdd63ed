"""Unsplash's list, oldest first, gone through by many clients: each takes ranges of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.photo import Photo
from sharp_cog.dataset.ranges import Progress, Range, Ranges
from sharp_cog.dataset.unsplash import Unsplash

_LOG = logging.getLogger(__name__)

_DONE = ("done", "others")


@dataclass
class _Area:
    """A range that is ours.

    Attributes:
        range: Which.
        start: Everything before this place was done when we took it.
        ids: What is at each place that was looked at; None for what nobody can use.
        is_scanned: Whether all of its places were.
        page: The page that was looked at last.
    """

    range: Range
    start: int
    ids: dict[int, str | None] = field(default_factory=dict)
    is_scanned: bool = False
    page: int = 0


class RangedList:
    """A source that gives the photographs of ranges, and keeps account of the ranges.

    A range is done when everything in it is, and not before: one with photographs that nobody could make a splat of is
    given up, with its holes on record.
    """

    def __init__(self, unsplash: Unsplash, ranges: Ranges, journal: Journal, *, max_scan: int) -> None:
        self._unsplash, self._ranges, self._journal = unsplash, ranges, journal
        self._max_scan = max_scan
        self._areas: list[_Area] = []
        self._mutex = threading.Lock()

    @property
    def num_photos(self) -> int | None:
        """As `Source.num_photos`."""
        return self._unsplash.num_photos

    @property
    def rate_limit_left(self) -> int | None:
        """As `Unsplash.rate_limit_left`."""
        return self._unsplash.rate_limit_left

    def fetch(self, photo: Photo) -> bytes:
        """As `Source.fetch`."""
        return self._unsplash.fetch(photo)

    def photos(self, is_known: Callable[[str], bool]) -> Iterator[Photo]:
        """As `Source.photos`."""
        num_scanned = 0
        # Its length, before a range behind its end is taken.
        self._unsplash.page(1)
        while (claimed := self._ranges.claim(self._unsplash.num_photos)) is not None:
            area = _Area(range=claimed[0], start=claimed[1])
            _LOG.info("taking the range %s of the list", area.range)
            with self._mutex:
                self._areas.append(area)
            size = self._ranges.page_size
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
                if len(page) < size:  # The end of the list: more may come, so this range is nobody's to end.
                    return
            area.is_scanned = True

    def look_after(self, is_over: bool) -> None:
        """Renews, ends and gives back claims on ranges, by what the journal says of their photographs."""
        with self._mutex:
            areas = list(self._areas)
        for area in areas:
            if self._look_after(area, is_over):
                with self._mutex:
                    self._areas.remove(area)

    def _look_after(self, area: _Area, is_over: bool) -> bool:
        """Whether the range is ours no more."""
        is_scanned = area.is_scanned  # Before its places are looked at: more may come in between.
        with self._mutex:
            ids = dict(area.ids)
        states = self._journal.states([photo_id for photo_id in ids.values() if photo_id is not None])
        is_done = dict.fromkeys(range(area.range.start, area.start), True)
        is_done |= {place: name is None or states.get(name) in _DONE for place, name in ids.items()}
        failed = sorted({name for name in ids.values() if name is not None and states.get(name) == "failed"})
        progress = Progress.of(area.range, is_done, area.page)
        num_open = sum(not done for done in is_done.values())
        if is_scanned and num_open == 0:
            _LOG.info("the range %s of the list is done", area.range)
            self._ranges.finish(area.range)
            return True
        if is_scanned and num_open == len(failed):
            reason = f"no splat could be made of {', '.join(failed[:20])}{' and others' if len(failed) > 20 else ''}"
            _LOG.warning("the range %s of the list is given up: %s", area.range, reason)
            self._ranges.give_up(area.range, progress, reason)
            return True
        if is_over:
            self._ranges.give_back(area.range, progress)
            return True
        if not self._ranges.renew(area.range, progress):
            _LOG.warning("the range %s of the list was taken over by another client", area.range)
            return True
        return False

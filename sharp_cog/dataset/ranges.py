"""Leases on ranges of a list that is the same for all clients, in the layout of the public pipeline.

Ranges save clients from reading the same pages. They do not ensure that a photograph is done once: its own lease does.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sharp_cog.config.dataset import RANGE_ABANDONED_DIR, RANGE_DONE_DIR, RANGE_LOCKS_DIR, RANGE_PROGRESS_DIR
from sharp_cog.dataset.leases import Lease
from sharp_cog.dataset.store import Change, Delete, Put, Store, View
from sharp_cog.text import read_json

_NAME = re.compile(r"(\d+)-(\d+)(?:\.json)?")


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Range:
    """Places of a list, counted from 0.

    Attributes:
        start: First place.
        end: Last place, included.
    """

    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"

    def overlaps(self, other: Range) -> bool:
        """Return whether two ranges share a place."""
        return self.start <= other.end and other.start <= self.end

    @property
    def lock_path(self) -> str:
        """Path of the lease in the store."""
        return f"{RANGE_LOCKS_DIR}/{self}"

    @property
    def done_path(self) -> str:
        """Path of the mark that the range is done."""
        return f"{RANGE_DONE_DIR}/{self}"

    @property
    def progress_path(self) -> str:
        """Path of the progress file."""
        return f"{RANGE_PROGRESS_DIR}/{self}.json"

    @property
    def abandoned_path(self) -> str:
        """Path of the file that says why a client gave up the range."""
        return f"{RANGE_ABANDONED_DIR}/{self}.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class RangeProgress:
    """The progress of a range.

    Attributes:
        frontier: First place that is not done.
        holes: Places after it that were looked at and are not done: first and last place of each run, in order.
        page: Page of the list that was looked at last.
    """

    frontier: int
    holes: tuple[tuple[int, int], ...] = ()
    page: int = 0

    @classmethod
    def from_places(cls, area: Range, is_done: Mapping[int, bool], page: int) -> RangeProgress:
        """Summarize the places that were looked at, each with whether it is done."""
        frontier = area.start
        # Places that were not looked at are missing from the mapping, so the frontier stops at them too.
        while is_done.get(frontier):
            frontier += 1
        holes: list[tuple[int, int]] = []
        for place in sorted(place for place, done in is_done.items() if not done):
            if holes and holes[-1][1] == place - 1:
                holes[-1] = (holes[-1][0], place)
            else:
                holes.append((place, place))
        return cls(frontier=frontier, holes=tuple(holes), page=page)


class Ranges:
    """The leases of one client on ranges of a list."""

    def __init__(self, store: Store, owner: str, *, size: int, page_size: int, stale_s: float) -> None:
        """Create a client without any lease.

        Args:
            store: The files that all clients share.
            owner: Name of this client.
            size: Places of a range, rounded up to whole pages.
            page_size: Places of a page of the list.
            stale_s: Seconds without a heartbeat after which a lease is lost, and after which an abandoned range is
                tried again.
        """
        self.page_size = page_size
        self._store, self._owner, self._stale_s = store, owner, stale_s
        # Whole pages, so that no two clients read the same page.
        self._size = -(-size // page_size) * page_size
        # This client does not try these again, even once the mark in the store is old enough for others.
        self._abandoned: set[Range] = set()
        self._heartbeats: dict[Range, float] = {}

    def acquire(self, num_listed: int | None) -> tuple[Range, int] | None:
        """Lease the first range that is neither done, nor leased by another client, nor abandoned lately.

        Args:
            num_listed: Length of the list; None if it is unknown.

        Returns:
            The range, and the first place in it that is not done; None if no range is left.
        """

        def decide(view: View) -> tuple[Change, tuple[Range, int] | None]:
            now = view.now()
            done = _ranges(view.names(RANGE_DONE_DIR))
            leases = {
                area: lease
                for area in _ranges(view.names(RANGE_LOCKS_DIR))
                if (lease := Lease.decode(view.read(area.lock_path))) is not None
            }
            # Leases from before a restart, or from a change whose answer was lost, are in our name but unknown here.
            left_over = sorted(
                area for area, lease in leases.items() if lease.owner == self._owner and area not in self._heartbeats
            )
            others = [
                area
                for area, lease in leases.items()
                if lease.owner != self._owner and lease.is_valid(now, self._stale_s)
            ]
            excluded = [*others, *self._heartbeats, *self._abandoned, *self._abandoned_lately(view, now)]
            # Ranges that this client held before it was killed come first.
            chosen = left_over[0] if left_over else self._first(done, excluded, num_listed)
            if chosen is None:
                return Change(operations=[], message=""), None
            # Our own lease is written again only if it has aged, so that a repeated decision finds nothing to do.
            operations: list[Put | Delete] = []
            if chosen not in left_over or now - leases[chosen].time > self._stale_s / 6:
                operations.append(self._put_lease(chosen, now))
            if view.existing([chosen.abandoned_path]):
                operations.append(Delete(path=chosen.abandoned_path))
            view.existing([chosen.lock_path])  # A folder replaces only files that the decision has seen.
            # The progress of an earlier client saves pages, but it is not trusted: a frontier outside of the range is
            # ignored. One place beyond the end says that everything is done.
            frontier = _json(view.read(chosen.progress_path)).get("frontier")
            is_inside = isinstance(frontier, int) and chosen.start <= frontier <= chosen.end + 1
            start = frontier if isinstance(frontier, int) and is_inside else chosen.start
            return Change(operations=operations, message=f"lease the range {chosen}"), (chosen, start)

        acquired = self._store.change(decide)
        if acquired is not None:
            self._heartbeats[acquired[0]] = time.monotonic()
        return acquired

    def _first(self, done: Iterable[Range], excluded: Iterable[Range], num_listed: int | None) -> Range | None:
        sorted_done, excluded = sorted(done), list(excluded)
        # Everything before is done, whatever sizes of ranges other clients used. Ranges start at multiples of the size,
        # so that clients with the same size propose the same ones.
        start = done_prefix(sorted_done) // self._size * self._size
        # The last range may reach beyond the list, which grows at its end.
        while num_listed is None or start < num_listed:
            area = Range(start=start, end=start + self._size - 1)
            if not _is_covered(area, sorted_done) and not any(area.overlaps(other) for other in excluded):
                return area
            start += self._size
        return None

    def _abandoned_lately(self, view: View, now: float) -> list[Range]:
        areas = []
        for area in _ranges(view.names(RANGE_ABANDONED_DIR)):
            when = _json(view.read(area.abandoned_path)).get("ts")
            # A mark from the far future, of a wrong clock, would exclude the range for ever, so it does not count.
            if isinstance(when, (int, float)) and now - self._stale_s <= when <= now + self._stale_s:
                areas.append(area)
        return areas

    def heartbeat(self, area: Range, progress: RangeProgress) -> bool:
        """Renew a lease and publish its progress, once a third of its time is over; call it often.

        Returns:
            False if another client took the range over.
        """
        # A third of the time leaves room for the change itself, which may wait at the hub's rate limit for hours.
        if time.monotonic() - self._heartbeats.get(area, -float("inf")) < self._stale_s / 3:
            return True
        # Taken before the change, which may take long: the lease is at least as fresh as this says.
        started = time.monotonic()
        is_ours = self._write(
            area, "renew", lambda now: [self._put_lease(area, now), self._put_progress(area, progress, now)]
        )
        if is_ours:
            self._heartbeats[area] = started
        return is_ours

    def finish(self, area: Range) -> None:
        """Mark a range as done for all clients and release it; do nothing if it was lost."""
        self._write(area, "finish", lambda _: [Put(path=area.done_path, content=b"")], releases=True)

    def release(self, area: Range, progress: RangeProgress) -> None:
        """Release a range for other clients to continue; do nothing if it was lost."""
        self._write(area, "release", lambda now: [self._put_progress(area, progress, now)], releases=True)

    def abandon(self, area: Range, progress: RangeProgress, reason: str) -> None:
        """Release a range with holes that this client cannot fill; do nothing if it was lost."""
        self._abandoned.add(area)

        def puts(now: float) -> list[Put]:
            about = {**_bounds(area), "reason": reason, "ts": now, "owner": self._owner}
            return [self._put_progress(area, progress, now), Put(path=area.abandoned_path, content=_encode(about))]

        self._write(area, "abandon", puts, releases=True)

    def _write(self, area: Range, verb: str, puts: Callable[[float], list[Put]], *, releases: bool = False) -> bool:
        """Write files of a range, at a time of the store's clock; return False if the range is not ours."""

        def decide(view: View) -> tuple[Change, bool]:
            message = f"{verb} the range {area}"
            # All four paths are asked for, since a folder replaces only files that the decision has seen.
            found = view.existing([area.lock_path, area.done_path, area.progress_path, area.abandoned_path])
            lease = Lease.decode(view.read(area.lock_path)) if area.lock_path in found else None
            # This client was silent for too long: what it knows may be older than what the new owner has written.
            if lease is None or lease.owner != self._owner:
                return Change(operations=[], message=message), False
            # A mark that exists is not written again: a repeated decision must not make a second commit.
            operations: list[Put | Delete] = [
                put for put in puts(view.now()) if put.path != area.done_path or area.done_path not in found
            ]
            if releases:
                operations.append(Delete(path=area.lock_path))
            return Change(operations=operations, message=message), True

        is_ours = self._store.change(decide)
        if releases or not is_ours:
            self._heartbeats.pop(area, None)
        return is_ours

    def _put_lease(self, area: Range, now: float) -> Put:
        return Put(path=area.lock_path, content=Lease(time=now, owner=self._owner).encode())

    def _put_progress(self, area: Range, progress: RangeProgress, now: float) -> Put:
        about = {
            **_bounds(area),
            "frontier": progress.frontier,
            "holes": [list(hole) for hole in progress.holes],
            "page": progress.page,
            "pp": self.page_size,
            "_updated_at": now,
            "_owner": self._owner,
        }
        return Put(path=area.progress_path, content=_encode(about))


def done_prefix(done: Iterable[Range]) -> int:
    """Return the number of places from 0 on that are done without a gap."""
    prefix = 0
    for area in sorted(done):
        if area.start > prefix:
            break
        # Ranges of other sizes may overlap, or lie within one that was counted already.
        prefix = max(prefix, area.end + 1)
    return prefix


def _is_covered(area: Range, sorted_done: Iterable[Range]) -> bool:
    """Return whether every place of a range is done; clients may have used ranges of other sizes."""
    place = area.start
    for other in sorted_done:
        if other.start > place:
            break
        place = max(place, other.end + 1)
    return place > area.end


def _ranges(names: Iterable[str]) -> list[Range]:
    matches = (_NAME.fullmatch(name) for name in names)
    return [Range(start=int(match[1]), end=int(match[2])) for match in matches if match]


def _bounds(area: Range) -> dict[str, int]:
    return {"range_start": area.start, "range_end": area.end}


def _json(content: bytes | None) -> dict[str, Any]:
    """Return a JSON object of another client; an empty one if the content is anything else."""
    try:
        value = read_json(content or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _encode(about: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(about)}\n".encode()

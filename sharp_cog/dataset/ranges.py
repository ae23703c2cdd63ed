"""Which part of a list that is the same for everybody a client goes through: ranges, in the public pipeline's layout.

They save clients from reading the same pages. That a photograph is done once is for its own claim to see to.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sharp_cog.dataset.claims import Lock
from sharp_cog.dataset.store import Change, Delete, Put, Store, View
from sharp_cog.text import read_json

_NAME = re.compile(r"(\d+)-(\d+)(?:\.json)?")


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Range:
    """Places of a list, from 0, both ends included."""

    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"

    def overlaps(self, other: Range) -> bool:
        """Whether they share a place."""
        return self.start <= other.end and other.start <= self.end


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a range is.

    Attributes:
        frontier: Everything before this place is done.
        holes: What was looked at behind it and is not done: first and last places, in order.
        page: The page of the list that was looked at last.
    """

    frontier: int
    holes: tuple[tuple[int, int], ...] = ()
    page: int = 0

    @classmethod
    def of(cls, area: Range, is_done: Mapping[int, bool], page: int) -> Progress:
        """From the places that were looked at, and whether each is done."""
        frontier = area.start
        while is_done.get(frontier):
            frontier += 1
        holes: list[tuple[int, int]] = []
        for place in sorted(place for place, done in is_done.items() if not done):
            if holes and holes[-1][1] == place - 1:
                holes[-1] = (holes[-1][0], place)
            else:
                holes.append((place, place))
        return cls(frontier=frontier, holes=tuple(holes), page=page)


@dataclass(frozen=True, kw_only=True, slots=True)
class RangeDirs:
    """Folders of the store, and what is in them for each range."""

    locks: str
    done: str
    progress: str
    abandoned: str

    def lock(self, area: Range) -> str:
        """Its lock."""
        return f"{self.locks}/{area}"

    def mark(self, area: Range) -> str:
        """The mark that it is done."""
        return f"{self.done}/{area}"

    def state(self, area: Range) -> str:
        """How far it is."""
        return f"{self.progress}/{area}.json"

    def given_up(self, area: Range) -> str:
        """Who gave it up, and why."""
        return f"{self.abandoned}/{area}.json"


@dataclass
class Ranges:
    """Claims on ranges of a list.

    Attributes:
        store: What all clients see.
        owner: This client's name.
        size: Places of a range.
        page_size: Of the list.
        dirs: Where what lies.
        stale_s: After which a lock, or a range's being given up, counts no more.
    """

    store: Store
    owner: str
    size: int
    page_size: int
    dirs: RangeDirs
    stale_s: float
    _given_up: set[Range] = field(default_factory=set)
    _renewed: dict[Range, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.size = -(-self.size // self.page_size) * self.page_size

    def claim(self, num_listed: int | None) -> tuple[Range, int] | None:
        """Takes the first range that is neither done nor somebody else's nor given up lately.

        Args:
            num_listed: How long the list is; None where nobody knows.

        Returns:
            The range, and the place in it up to which all is done; None where there is no range left.
        """

        def decide(view: View) -> tuple[Change, tuple[Range, int] | None]:
            now = view.now()
            done = _ranges(view.names(self.dirs.done))
            locks = {
                area: lock
                for area in _ranges(view.names(self.dirs.locks))
                if (lock := Lock.of(view.read(self.dirs.lock(area)))) is not None
            }
            mine = sorted(
                area for area, lock in locks.items() if lock.owner == self.owner and area not in self._renewed
            )
            held = [area for area, lock in locks.items() if lock.owner != self.owner and lock.holds(now, self.stale_s)]
            shunned = [*held, *self._renewed, *self._given_up, *self._abandoned(view, now)]
            # What is left from before we were killed comes first.
            chosen = mine[0] if mine else self._first(done, shunned, num_listed)
            if chosen is None:
                return Change(operations=[], message=""), None
            lock = Lock(time=now, owner=self.owner)
            operations: list[Put | Delete] = []
            if chosen not in mine or now - locks[chosen].time > 1:
                operations.append(Put(path=self.dirs.lock(chosen), content=lock.text()))
            if view.existing([self.dirs.given_up(chosen)]):
                operations.append(Delete(path=self.dirs.given_up(chosen)))
            view.existing([self.dirs.lock(chosen)])
            state = _json(view.read(self.dirs.state(chosen)))
            frontier = state.get("frontier")
            is_inside = isinstance(frontier, int) and chosen.start <= frontier <= chosen.end + 1
            start = frontier if isinstance(frontier, int) and is_inside else chosen.start
            return Change(operations=operations, message=f"claim the range {chosen}"), (chosen, start)

        claimed = self.store.change(decide)
        if claimed is not None:
            self._renewed[claimed[0]] = time.monotonic()
        return claimed

    def _first(self, done: Iterable[Range], shunned: Iterable[Range], num_listed: int | None) -> Range | None:
        sorted_done, shunned = sorted(done), list(shunned)
        start = done_prefix(sorted_done) // self.size * self.size
        while num_listed is None or start < num_listed:
            area = Range(start=start, end=start + self.size - 1)
            if not _is_covered(area, sorted_done) and not any(area.overlaps(other) for other in shunned):
                return area
            start += self.size
        return None

    def _abandoned(self, view: View, now: float) -> list[Range]:
        areas = []
        for area in _ranges(view.names(self.dirs.abandoned)):
            given_up_at = _json(view.read(self.dirs.given_up(area))).get("ts")
            if isinstance(given_up_at, (int, float)) and now - self.stale_s <= given_up_at <= now + self.stale_s:
                areas.append(area)
        return areas

    def renew(self, area: Range, progress: Progress) -> bool:
        """Renews a claim and tells how far it is, once a third of its time is over; whether it is ours still."""
        if time.monotonic() - self._renewed.get(area, -float("inf")) < self.stale_s / 3:
            return True
        begun = time.monotonic()
        is_ours = self._write(area, "renew", lambda now: [self._locked(area, now), self._told(area, progress, now)])
        if is_ours:
            self._renewed[area] = begun
        return is_ours

    def finish(self, area: Range) -> None:
        """Marks a range as done for everybody, and ends the claim; nothing where it was lost."""
        self._write(area, "finish", lambda _: [Put(path=self.dirs.mark(area), content=b"")], is_end=True)

    def give_back(self, area: Range, progress: Progress) -> None:
        """Ends a claim on a range that others may go on with; nothing where it was lost."""
        self._write(area, "give back", lambda now: [self._told(area, progress, now)], is_end=True)

    def give_up(self, area: Range, progress: Progress, reason: str) -> None:
        """Ends a claim on a range that has holes which we cannot fill; nothing where it was lost."""
        self._given_up.add(area)

        def told(now: float) -> list[Put]:
            about = {**_named(area), "reason": reason, "ts": now, "owner": self.owner}
            return [self._told(area, progress, now), Put(path=self.dirs.given_up(area), content=_text(about))]

        self._write(area, "give up", told, is_end=True)

    def _write(self, area: Range, verb: str, puts: Callable[[float], list[Put]], *, is_end: bool = False) -> bool:
        """Writes what belongs to a range that is ours, at a time of the store's; whether it was."""

        def decide(view: View) -> tuple[Change, bool]:
            message = f"{verb} the range {area}"
            lock_path, mark, state = self.dirs.lock(area), self.dirs.mark(area), self.dirs.state(area)
            there = view.existing([lock_path, mark, state, self.dirs.given_up(area)])
            lock = Lock.of(view.read(lock_path)) if lock_path in there else None
            if lock is None or lock.owner != self.owner:
                return Change(operations=[], message=message), False
            operations: list[Put | Delete] = [put for put in puts(view.now()) if put.path != mark or mark not in there]
            if is_end:
                operations.append(Delete(path=lock_path))
            return Change(operations=operations, message=message), True

        is_ours = self.store.change(decide)
        if is_end or not is_ours:
            self._renewed.pop(area, None)
        return is_ours

    def _locked(self, area: Range, now: float) -> Put:
        return Put(path=self.dirs.lock(area), content=Lock(time=now, owner=self.owner).text())

    def _told(self, area: Range, progress: Progress, now: float) -> Put:
        about = {
            **_named(area),
            "frontier": progress.frontier,
            "holes": [list(hole) for hole in progress.holes],
            "page": progress.page,
            "pp": self.page_size,
            "_updated_at": now,
            "_owner": self.owner,
        }
        return Put(path=self.dirs.state(area), content=_text(about))


def done_prefix(done: Iterable[Range]) -> int:
    """How many places from 0 on are done without a gap."""
    prefix = 0
    for area in sorted(done):
        if area.start > prefix:
            break
        prefix = max(prefix, area.end + 1)
    return prefix


def _is_covered(area: Range, sorted_done: Iterable[Range]) -> bool:
    """Whether every place of a range is done, be it in ranges of other sizes."""
    place = area.start
    for other in sorted_done:
        if other.start > place:
            break
        place = max(place, other.end + 1)
    return place > area.end


def _ranges(names: Iterable[str]) -> list[Range]:
    found = (_NAME.fullmatch(name) for name in names)
    return [Range(start=int(match[1]), end=int(match[2])) for match in found if match]


def _named(area: Range) -> dict[str, int]:
    return {"range_start": area.start, "range_end": area.end}


def _json(content: bytes | None) -> dict[str, Any]:
    try:
        value = read_json(content or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _text(about: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(about)}\n".encode()

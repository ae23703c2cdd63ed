"""Who does which photograph, where many clients work on one dataset: claims in a store that all of them see."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from sharp_cog.dataset.photo import Photo
from sharp_cog.dataset.store import Change, Delete, Put, Store, View


@dataclass(frozen=True, kw_only=True, slots=True)
class Lock:
    """The content of a lock: three lines, Unix time, owner and a note."""

    time: float
    owner: str
    note: str = ""

    def holds(self, now: float, stale_s: float) -> bool:
        """Whether it holds others off: not if it is old, nor if its time is as far ahead, which would be for ever."""
        return abs(now - self.time) <= stale_s

    def text(self) -> bytes:
        """As it is written."""
        return f"{self.time:.3f}\n{self.owner}\n{self.note}\n".encode()

    @classmethod
    def of(cls, content: bytes | None) -> Lock | None:
        """Reads a lock; None for what has no time, which holds nobody off."""
        lines = (content or b"").decode("utf-8", "replace").splitlines()
        padded = [*lines, "", "", ""]
        try:
            when = float(padded[0])
        except ValueError:
            return None
        if not math.isfinite(when):
            return None
        return cls(time=when, owner=padded[1].strip(), note=padded[2].strip())


@dataclass(frozen=True, kw_only=True, slots=True)
class Claimed:
    """What came of a claim: the photographs that are ours, and those that are done; others are somebody else's."""

    ours: list[Photo]
    done: list[Photo]


class Claims:
    """Claims on photographs, in the layout of the public pipeline, many in one change of the store.

    No two clients hold one at once, unless its holder was silent for too long. Owners are told apart by name: who comes
    back after being killed has its claims still.
    """

    def __init__(self, store: Store, owner: str, *, locks_dir: str, done_dir: str, stale_s: float) -> None:
        self._store, self._owner, self._stale_s = store, owner, stale_s
        self._locks_dir, self._done_dir = locks_dir.strip("/"), done_dir.strip("/")
        self._held: set[str] = set()
        self._dropped: set[str] = set()
        self._mutex = threading.Lock()
        self._renewed = 0.0

    def lock_path(self, photo_id: str) -> str:
        """Where a photograph's lock lies."""
        return f"{self._locks_dir}/{photo_id}"

    def done_path(self, photo_id: str) -> str:
        """Where the mark lies that it is done."""
        return f"{self._done_dir}/{photo_id}"

    def claim(self, photos: Sequence[Photo]) -> Claimed:
        """Takes those that are neither done nor somebody else's, in one change."""

        def decide(view: View) -> tuple[Change, Claimed]:
            there = view.existing([path(photo.id) for photo in photos for path in (self.lock_path, self.done_path)])
            now, ours, done = view.now(), [], []
            operations: list[Put | Delete] = []
            for photo in photos:
                path = self.lock_path(photo.id)
                if self.done_path(photo.id) in there:
                    done.append(photo)
                    continue
                lock = Lock.of(view.read(path)) if path in there else None
                if lock is not None and lock.owner != self._owner and lock.holds(now, self._stale_s):
                    continue
                ours.append(photo)
                # Our own is there already after an answer that was lost, or from before we were killed.
                if lock is None or lock.owner != self._owner or now - lock.time > self._stale_s / 3:
                    operations.append(self._lock(photo.id, "" if photo.offset is None else str(photo.offset), now))
            change = Change(operations=operations, message=f"claim {len(operations)} photographs")
            return change, Claimed(ours=ours, done=done)

        claimed = self._store.change(decide)
        with self._mutex:
            if not self._held:
                self._renewed = time.monotonic()
            self._held |= {photo.id for photo in claimed.ours}
            self._dropped -= self._held
        return claimed

    def holds(self, photo_id: str) -> bool:
        """Whether a claim is ours, as far as we know."""
        with self._mutex:
            return photo_id in self._held

    def _lock(self, photo_id: str, note: str, now: float) -> Put:
        return Put(path=self.lock_path(photo_id), content=Lock(time=now, owner=self._owner, note=note).text())

    def renew(self) -> set[str]:
        """Renews all claims held, in one change, once a third of their time is over.

        Returns:
            The ids of those that were lost to others meanwhile.
        """
        with self._mutex:
            held = sorted(self._held)
            if not held or time.monotonic() - self._renewed < self._stale_s / 3:
                return set()
        begun = time.monotonic()

        def decide(view: View) -> tuple[Change, set[str]]:
            now = view.now()
            there = view.existing([self.lock_path(photo_id) for photo_id in held])
            locks = {
                photo_id: Lock.of(view.read(self.lock_path(photo_id)))
                for photo_id in held
                if self.lock_path(photo_id) in there
            }
            ours = {photo_id: lock for photo_id, lock in locks.items() if lock is not None and self._is_ours(lock)}
            # Those that this change has renewed already, where its answer was lost, are fresh.
            operations = [
                self._lock(photo_id, lock.note, now) for photo_id, lock in ours.items() if now - lock.time > 1
            ]
            return Change(operations=operations, message=f"renew {len(operations)} claims"), set(held) - set(ours)

        lost = self._store.change(decide)
        with self._mutex:
            lost &= self._held  # Others were ended by ourselves meanwhile.
            self._renewed = begun
            self._held -= lost
        return lost

    def _is_ours(self, lock: Lock) -> bool:
        return lock.owner == self._owner

    def release(self, photo_ids: Iterable[str]) -> None:
        """Gives claims back, for others to take, in one change."""
        self._end(set(photo_ids), set())

    def drop(self, photo_id: str) -> None:
        """Lets go of a claim; `give_back` does it, with others, since at the hub each time is a commit."""
        with self._mutex:
            self._held.discard(photo_id)
            self._dropped.add(photo_id)

    def give_back(self, *, all_of_them: bool = False) -> None:
        """Gives back what was dropped, so that others need not wait until it is stale; or whatever is held."""
        with self._mutex:
            ended = self._dropped | self._held if all_of_them else set(self._dropped)
        self.release(ended)

    def finish(self, photo_ids: Iterable[str]) -> None:
        """Notes photographs as done for everybody and gives the claims back, in one change."""
        finished = set(photo_ids)
        self._end(finished, finished)

    def _end(self, photo_ids: set[str], done: set[str]) -> None:
        def decide(view: View) -> tuple[Change, None]:
            operations: list[Put | Delete] = [*self.ending(view, photo_ids), *self.marks(view, done)]
            message = f"finish {len(done)} photographs" if done else f"give {len(photo_ids)} claims back"
            return Change(operations=operations, message=message), None

        if photo_ids:
            self._store.change(decide)
        self.forget(photo_ids)

    def ending(self, view: View, photo_ids: Collection[str]) -> list[Delete]:
        """What deletes our locks; part of a change, and `forget` belongs after it."""
        there = view.existing([self.lock_path(photo_id) for photo_id in photo_ids])
        locks = ((path, Lock.of(view.read(path))) for path in sorted(there))
        return [Delete(path=path) for path, lock in locks if lock is None or self._is_ours(lock)]

    def marks(self, view: View, photo_ids: Collection[str]) -> list[Put]:
        """What marks photographs as done; part of a change."""
        there = view.existing([self.done_path(photo_id) for photo_id in photo_ids])
        return [
            Put(path=self.done_path(photo_id), content=b"")
            for photo_id in sorted(photo_ids)
            if self.done_path(photo_id) not in there
        ]

    def forget(self, photo_ids: Collection[str]) -> None:
        """Once a change has ended claims."""
        with self._mutex:
            self._held.difference_update(photo_ids)
            self._dropped.difference_update(photo_ids)

"""Leases on photographs: many clients share the work on one dataset, and each photograph has one client at a time.

A lease is a file in a shared store, in the layout of the public pipeline: `locks/<id>` while a client works on the
photograph, `done/<id>` once its splat is published. A client renews its leases by a heartbeat. A client that stays
silent too long loses them.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from sharp_cog.config.dataset import DONE_DIR, LOCKS_DIR
from sharp_cog.dataset.photo import Photo
from sharp_cog.dataset.store import Change, Delete, Put, Store, View


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """The content of a lease file, one attribute a line.

    Attributes:
        time: Unix time of the last heartbeat, by the store's clock.
        owner: Name of the client.
        note: A note for people, such as the photograph's place in a list.
    """

    time: float
    owner: str
    note: str = ""

    def is_valid(self, now: float, stale_s: float) -> bool:
        """Return whether the lease blocks other clients.

        A lease from the future is invalid too: it would otherwise block them until then.
        """
        return abs(now - self.time) <= stale_s

    def encode(self) -> bytes:
        """Return the content of the file."""
        return f"{self.time:.3f}\n{self.owner}\n{self.note}\n".encode()

    @classmethod
    def decode(cls, content: bytes | None) -> Lease | None:
        """Read a lease; return None for a file without a time, which blocks no client."""
        # Other pipelines write leases too: lines may be missing, and bytes that are not UTF-8 must not end the run.
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
class Acquired:
    """The result of asking for leases; photographs in neither list are leased by other clients.

    Attributes:
        ours: Photographs that this client has leases on.
        done: Photographs that are published already.
    """

    ours: list[Photo]
    done: list[Photo]


class Leases:
    """The leases of one client, many in one change of the store.

    A client is known by the name `owner`, so that it keeps its leases when it is killed and started again.
    """

    def __init__(self, store: Store, owner: str, *, stale_s: float) -> None:
        """Create a client without any lease.

        Args:
            store: The files that all clients share.
            owner: Name of this client.
            stale_s: Seconds without a heartbeat after which a lease is lost.
        """
        self._store, self._owner, self._stale_s = store, owner, stale_s
        self._held: set[str] = set()
        self._unneeded: set[str] = set()
        self._mutex = threading.Lock()
        self._last_heartbeat = 0.0

    def acquire(self, photos: Sequence[Photo]) -> Acquired:
        """Lease those photographs that are neither done nor leased by another client, in one change."""

        def decide(view: View) -> tuple[Change, Acquired]:
            # Leases first: a client that finishes meanwhile writes the mark before it deletes its lease.
            leases = _read(view, [photo.id for photo in photos])
            marked = view.existing([done_path(photo.id) for photo in photos])
            now, ours, done = view.now(), [], []
            operations: list[Put | Delete] = []
            # A decision may be repeated, so it depends on what the store says alone, and never on `_held`.
            for photo in photos:
                if done_path(photo.id) in marked:
                    done.append(photo)
                    continue
                lease = leases.get(photo.id)
                if lease is not None and lease.owner != self._owner and lease.is_valid(now, self._stale_s):
                    continue
                ours.append(photo)
                # Our own lease exists if the answer to the last try was lost, or this client was killed before.
                if lease is None or lease.owner != self._owner or now - lease.time > self._stale_s / 3:
                    operations.append(self._put(photo.id, "" if photo.offset is None else str(photo.offset), now))
            change = Change(operations=operations, message=f"lease {len(operations)} photographs")
            return change, Acquired(ours=ours, done=done)

        acquired = self._store.change(decide)
        with self._mutex:
            # The first leases are fresh. If there are others, the next heartbeat is due when they are.
            if not self._held:
                self._last_heartbeat = time.monotonic()
            self._held |= {photo.id for photo in acquired.ours}
            # A photograph that was given up before may be leased again, and must not be released as unneeded then.
            self._unneeded -= self._held
        return acquired

    def holds(self, photo_id: str) -> bool:
        """Return whether this client has a lease, as far as it knows."""
        with self._mutex:
            return photo_id in self._held

    def _put(self, photo_id: str, note: str, now: float) -> Put:
        return Put(path=lock_path(photo_id), content=Lease(time=now, owner=self._owner, note=note).encode())

    def heartbeat(self) -> set[str]:
        """Renew all leases in one change, once a third of their time is over; call it often.

        Returns:
            The ids of photographs whose leases other clients took over.
        """
        with self._mutex:
            held = sorted(self._held)
            # A third of the time leaves room for the change itself, which may wait at the hub's rate limit for hours.
            if not held or time.monotonic() - self._last_heartbeat < self._stale_s / 3:
                return set()
        # Taken before the change, which may take long: the leases are at least as fresh as this says.
        started = time.monotonic()

        def decide(view: View) -> tuple[Change, set[str]]:
            now, leases = view.now(), _read(view, held)
            ours = {
                photo_id: lease
                for photo_id, lease in leases.items()
                if lease is not None and lease.owner == self._owner
            }
            # If the answer to the last try was lost, these leases are fresh already. So are those that were acquired a
            # moment ago, which will be at most half of their time old at the next heartbeat.
            operations = [
                self._put(photo_id, lease.note, now)
                for photo_id, lease in ours.items()
                if now - lease.time > self._stale_s / 6
            ]
            return Change(operations=operations, message=f"renew {len(operations)} leases"), set(held) - set(ours)

        lost = self._store.change(decide)
        with self._mutex:
            lost &= self._held  # This client may have released some meanwhile.
            self._last_heartbeat = started
            self._held -= lost
        return lost

    def release_later(self, photo_id: str) -> None:
        """Mark a lease as unneeded; `release_unneeded` releases many at once, as each change of a hub is a commit."""
        with self._mutex:
            self._held.discard(photo_id)
            self._unneeded.add(photo_id)

    def release(self, photo_ids: Iterable[str]) -> None:
        """Release leases for other clients, in one change."""
        self._end(set(photo_ids), set())

    def release_unneeded(self) -> None:
        """Release the leases that are no longer needed, so that other clients need not wait until they are stale."""
        with self._mutex:
            unneeded = set(self._unneeded)
        self.release(unneeded)

    def release_all(self) -> None:
        """Release every lease of this client."""
        with self._mutex:
            held = self._held | self._unneeded
        self.release(held)

    def finish(self, photo_ids: Iterable[str]) -> None:
        """Mark photographs as done for all clients and release their leases, in one change."""
        finished = set(photo_ids)
        self._end(finished, finished)

    def _end(self, photo_ids: set[str], done: set[str]) -> None:
        def decide(view: View) -> tuple[Change, None]:
            message = f"finish {len(done)} photographs" if done else f"release {len(photo_ids)} leases"
            return Change(operations=self.end_operations(view, photo_ids, done), message=message), None

        if photo_ids:
            self._store.change(decide)
        self.forget(photo_ids)

    def end_operations(self, view: View, photo_ids: Collection[str], done: Collection[str]) -> list[Put | Delete]:
        """Return the operations that delete our leases and mark photographs as done, as a part of a change.

        Call `forget` once the change is made.
        """
        # A lease that another client took over stays. A file that is no lease blocks nobody, and goes with the rest.
        leases = sorted(_read(view, photo_ids).items())
        marked = view.existing([done_path(photo_id) for photo_id in done])
        # Marks come before deletions: in a folder each operation is visible at once, and a photograph with neither
        # would look free. What is done already leaves no operation, so that a repeated decision makes no second commit.
        return [
            *(Put(path=path, content=b"") for path in sorted(set(map(done_path, done)) - marked)),
            *(Delete(path=lock_path(name)) for name, lease in leases if lease is None or lease.owner == self._owner),
        ]

    def forget(self, photo_ids: Collection[str]) -> None:
        """Drop leases that a change has ended."""
        with self._mutex:
            self._held.difference_update(photo_ids)
            self._unneeded.difference_update(photo_ids)


def lock_path(photo_id: str) -> str:
    """Return the path of a photograph's lease in the store."""
    return f"{LOCKS_DIR}/{photo_id}"


def done_path(photo_id: str) -> str:
    """Return the path of the mark that a photograph is done."""
    return f"{DONE_DIR}/{photo_id}"


def _read(view: View, photo_ids: Collection[str]) -> dict[str, Lease | None]:
    """Return the leases on photographs that have one; None for a file that is no lease."""
    found = view.existing([lock_path(photo_id) for photo_id in photo_ids])
    return {
        photo_id: Lease.decode(view.read(lock_path(photo_id))) for photo_id in photo_ids if lock_path(photo_id) in found
    }

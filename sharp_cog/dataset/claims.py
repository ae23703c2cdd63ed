"""Who does which photograph, where many clients work on one dataset."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from sharp_cog.dataset.hub import Change, HubRepo, Operation, View
from sharp_cog.dataset.photo import Photo


@dataclass(frozen=True, kw_only=True, slots=True)
class Claimed:
    """What came of a claim: the photographs that are ours, and those that are done."""

    ours: list[Photo]
    done: list[Photo]


class Claims(Protocol):
    """Claims on photographs; no two clients hold one at once, unless its holder was silent for too long."""

    def claim(self, photos: Sequence[Photo]) -> Claimed:
        """Takes those that are neither done nor somebody else's."""
        ...

    def renew(self) -> set[str]:
        """Renews all claims held; returns the ids of those that were lost to others meanwhile."""
        ...

    def release(self, photo_ids: Collection[str]) -> None:
        """Gives claims back, for others to take."""
        ...

    def finish(self, photo_ids: Collection[str]) -> None:
        """Notes photographs as done for everybody, and gives the claims back."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Lock:
    """The content of a lock: three lines, Unix time, owner and a note."""

    time: float
    owner: str
    note: str = ""

    def text(self) -> bytes:
        """As it is written."""
        return f"{self.time:.0f}\n{self.owner}\n{self.note}\n".encode()

    @classmethod
    def of(cls, content: bytes | None) -> Lock | None:
        """Reads a lock; None for what has no time, which holds nobody off."""
        lines = (content or b"").decode("utf-8", "replace").splitlines()
        padded = [*lines, "", "", ""]
        try:
            when = float(lines[0])
        except (IndexError, ValueError):
            return None
        return cls(time=when, owner=padded[1].strip(), note=padded[2].strip())


class FolderClaims:
    """Claims in a folder that all clients see, by files that only one can create.

    The time is that of the folder's file system, by the files' own stamps: a client's clock does not count.
    """

    def __init__(self, folder: Path, owner: str, *, stale_s: float) -> None:
        self._locks, self._done = folder / "locks", folder / "done"
        self._owner, self._stale_s = owner, stale_s
        self._held: set[str] = set()
        for path in (self._locks, self._done):
            path.mkdir(parents=True, exist_ok=True)

    def claim(self, photos: Sequence[Photo]) -> Claimed:
        """As `Claims.claim`."""
        ours, done = [], []
        for photo in photos:
            if (self._done / photo.id).exists():
                done.append(photo)
            elif self._take(photo):
                # Between the look and the claim its last holder may have finished it.
                if (self._done / photo.id).exists():
                    self.release([photo.id])
                    done.append(photo)
                else:
                    ours.append(photo)
        return Claimed(ours=ours, done=done)

    def _take(self, photo: Photo) -> bool:
        path = self._locks / photo.id
        note = "" if photo.offset is None else str(photo.offset)
        for _ in range(2):
            if self._create(path, note):
                self._held.add(photo.id)
                return True
            if self._is_ours(path):
                self._held.add(photo.id)
                os.utime(path)
                return True
            if not self._is_stale(path):
                return False
            # Of many who see that it is stale, one can move it away.
            try:
                os.rename(path, path.with_name(f".{path.name}.{secrets.token_hex(8)}.stale"))
            except FileNotFoundError:
                continue
            self._sweep(path)
        return False

    def _create(self, path: Path, note: str) -> bool:
        """Creates the lock with its content at once: a link appears whole, and only if there is none."""
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.draft")
        draft.write_bytes(Lock(time=time.time(), owner=self._owner, note=note).text())
        try:
            os.link(draft, path)
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        return True

    def _is_ours(self, path: Path) -> bool:
        try:
            lock = Lock.of(path.read_bytes())
        except FileNotFoundError:
            return False
        return lock is not None and lock.owner == self._owner

    def _is_stale(self, path: Path) -> bool:
        try:
            written = path.stat().st_mtime
        except FileNotFoundError:
            return False
        return self._now() - written > self._stale_s

    def _now(self) -> float:
        """The file system's time."""
        probe = self._locks / f".{secrets.token_hex(8)}.clock"
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        return now

    def _sweep(self, path: Path) -> None:
        for stale in path.parent.glob(f".{path.name}.*.stale"):
            stale.unlink(missing_ok=True)

    def renew(self) -> set[str]:
        """As `Claims.renew`."""
        lost = set()
        for photo_id in sorted(self._held):
            path = self._locks / photo_id
            if self._is_ours(path):
                os.utime(path)
            else:
                lost.add(photo_id)
        self._held -= lost
        return lost

    def release(self, photo_ids: Collection[str]) -> None:
        """As `Claims.release`."""
        for photo_id in photo_ids:
            if self._is_ours(self._locks / photo_id):
                (self._locks / photo_id).unlink(missing_ok=True)
            self._held.discard(photo_id)

    def finish(self, photo_ids: Collection[str]) -> None:
        """As `Claims.finish`."""
        for photo_id in photo_ids:
            (self._done / photo_id).touch()
        self.release(photo_ids)


class HubClaims:
    """Claims in a repository of the hub, many in one commit, in the layout of the public pipeline."""

    def __init__(self, repo: HubRepo, owner: str, *, locks_dir: str, done_dir: str, stale_s: float) -> None:
        self._repo, self._owner, self._stale_s = repo, owner, stale_s
        self._locks_dir, self._done_dir = locks_dir, done_dir
        self._held: set[str] = set()
        self._renewed = 0.0

    def lock_path(self, photo_id: str) -> str:
        """Where a photograph's lock lies."""
        return f"{self._locks_dir}/{photo_id}"

    def done_path(self, photo_id: str) -> str:
        """Where the mark lies that it is done."""
        return f"{self._done_dir}/{photo_id}"

    def claim(self, photos: Sequence[Photo]) -> Claimed:
        """As `Claims.claim`, in one commit."""

        def decide(view: View) -> tuple[Change, Claimed]:
            there = view.existing([path(photo.id) for photo in photos for path in (self.lock_path, self.done_path)])
            now, ours, done = self._repo.now(), [], []
            operations: list[Operation] = []
            for photo in photos:
                path = self.lock_path(photo.id)
                if self.done_path(photo.id) in there:
                    done.append(photo)
                    continue
                lock = Lock.of(view.read(path)) if path in there else None
                if lock is not None and lock.owner != self._owner and now - lock.time <= self._stale_s:
                    continue
                ours.append(photo)
                # Our own is there already after an answer that was lost, or from before we were killed.
                if lock is None or lock.owner != self._owner or now - lock.time > self._stale_s / 3:
                    operations.append(self._lock(photo.id, "" if photo.offset is None else str(photo.offset), now))
            change = Change(operations=operations, message=f"claim {len(operations)} photographs")
            return change, Claimed(ours=ours, done=done)

        with self._repo.lock:
            claimed = self._repo.change(decide)
            self._held |= {photo.id for photo in claimed.ours}
            self._renewed = self._renewed or time.monotonic()
        return claimed

    def _lock(self, photo_id: str, note: str, now: float) -> CommitOperationAdd:
        content = Lock(time=now, owner=self._owner, note=note).text()
        return CommitOperationAdd(path_in_repo=self.lock_path(photo_id), path_or_fileobj=content)

    def renew(self) -> set[str]:
        """As `Claims.renew`: one commit, once a third of the time is over."""
        if not self._held or time.monotonic() - self._renewed < self._stale_s / 3:
            return set()

        def decide(view: View) -> tuple[Change, set[str]]:
            now = self._repo.now()
            locks = {photo_id: Lock.of(view.read(self.lock_path(photo_id))) for photo_id in self._held}
            lost = {photo_id for photo_id, lock in locks.items() if lock is None or lock.owner != self._owner}
            operations = [
                self._lock(photo_id, lock.note, now)
                for photo_id, lock in locks.items()
                if lock is not None and photo_id not in lost and now - lock.time > 1
            ]
            return Change(operations=operations, message=f"renew {len(operations)} claims"), lost

        with self._repo.lock:
            lost = self._repo.change(decide)
            self._renewed = time.monotonic()
            self._held -= lost
        return lost

    def release(self, photo_ids: Collection[str]) -> None:
        """As `Claims.release`, in one commit."""
        self._end(photo_ids, [])

    def finish(self, photo_ids: Collection[str]) -> None:
        """As `Claims.finish`, in one commit; publishing has it in its own."""
        self._end(photo_ids, photo_ids)

    def _end(self, photo_ids: Collection[str], done: Collection[str]) -> None:
        def decide(view: View) -> tuple[Change, None]:
            operations = [*self.ending(view, photo_ids), *self.marks(view, done)]
            return Change(operations=operations, message=f"give {len(photo_ids)} claims back"), None

        if photo_ids:
            self._repo.change(decide)
        self.forget(photo_ids)

    def ending(self, view: View, photo_ids: Collection[str]) -> list[Operation]:
        """What deletes our locks."""
        there = view.existing([self.lock_path(photo_id) for photo_id in photo_ids])
        return [
            CommitOperationDelete(path_in_repo=path)
            for path in sorted(there)
            if (lock := Lock.of(view.read(path))) is None or lock.owner == self._owner
        ]

    def marks(self, view: View, photo_ids: Collection[str]) -> list[Operation]:
        """What marks photographs as done."""
        there = view.existing([self.done_path(photo_id) for photo_id in photo_ids])
        return [
            CommitOperationAdd(path_in_repo=self.done_path(photo_id), path_or_fileobj=b"")
            for photo_id in sorted(photo_ids)
            if self.done_path(photo_id) not in there
        ]

    def forget(self, photo_ids: Collection[str]) -> None:
        """Once a commit has ended claims."""
        with self._repo.lock:
            self._held.difference_update(photo_ids)

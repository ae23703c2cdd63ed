"""A store in a folder that many processes or machines share."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from sharp_cog.dataset.store import MAX_TRIES, Change, Delete, Put
from sharp_cog.errors import OutputError

_T = TypeVar("_T")

LOCK_TIMEOUT_S = 120.0
"""Longest wait for the folder's lock. A change takes milliseconds, so a longer wait means a stuck process."""


class FolderStore:
    """Files below a folder; see `sharp_cog.dataset.store.Store`.

    One client changes files at a time. A lock of the operating system excludes the others; it ends with its process.
    Network file systems may lack reliable locks. Therefore a new file is also created exclusively, and appears whole:
    even without the lock, two clients cannot both get a lease on one photograph.

    Raises:
        OutputError: The folder cannot be created.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"the folder {folder} cannot be created: {error.strerror or error}: choose another CLAIMS_DIR"
            ) from error
        self._lock_path = folder / ".mutex"

    def change(self, decide: Callable[[FolderView], tuple[Change, _T]]) -> _T:
        """Look, decide and write; see `Store.change`.

        Raises:
            OutputError: The folder cannot be written, or another process holds its lock.
        """
        try:
            # The lock is released between two tries. What one of them has written stays: decisions accept files of
            # their own change, such as a lease in the same name.
            for _ in range(MAX_TRIES):
                with FileLock(self._lock_path, timeout=LOCK_TIMEOUT_S):
                    view = FolderView(self.folder)
                    change, result = decide(view)
                    if all(self._apply(operation, view) for operation in change.operations):
                        return result
        except Timeout:
            raise OutputError(
                f"another process has held {self._lock_path} for {LOCK_TIMEOUT_S:.0f} s: find that process and end it"
            ) from None
        except OSError as error:
            raise OutputError(f"the folder {self.folder} cannot be used: {error.strerror or error}") from error
        raise OutputError(f"{self.folder} could not be changed in {MAX_TRIES} tries: other clients were always faster")

    def _apply(self, operation: Put | Delete, view: FolderView) -> bool:
        """Perform one operation; return False if another client created the file first."""
        path = self.folder / operation.path
        if isinstance(operation, Delete):
            path.unlink(missing_ok=True)
            return True
        path.parent.mkdir(parents=True, exist_ok=True)
        # Complete before it gets its name, so that no reader sees a part of it; `names` hides names with a dot.
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.draft")
        content = operation.content
        try:
            draft.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
            # A link fails if the name exists, and a replacement would overwrite the lease of another client.
            if operation.path in view.seen:
                os.replace(draft, path)
            else:
                os.link(draft, path)
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        return True


class FolderView:
    """The folder at one moment; see `sharp_cog.dataset.store.View`.

    Attributes:
        seen: Paths that existed when the decision asked for them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._now: float | None = None
        self.seen: set[str] = set()

    def now(self) -> float:
        """Return the time that the file system stamps files with, which is the same for all machines."""
        if self._now is None:
            # On a network file system the server sets this time, so the machines' own clocks do not matter.
            probe = self._folder / f".{secrets.token_hex(8)}.clock"
            probe.touch()
            self._now = probe.stat().st_mtime
            probe.unlink()
        return self._now

    def existing(self, paths: Collection[str]) -> set[str]:
        """Return those of the paths that are files."""
        found = {path for path in paths if (self._folder / path).is_file()}
        self.seen |= found
        return found

    def names(self, folder: str) -> set[str]:
        """Return the names in a folder, without hidden ones."""
        try:
            return {path.name for path in (self._folder / folder).iterdir() if not path.name.startswith(".")}
        except FileNotFoundError:
            return set()

    def read(self, path: str) -> bytes | None:
        """Return the content of a file, or None if it does not exist."""
        try:
            content = (self._folder / path).read_bytes()
        except FileNotFoundError:
            return None
        self.seen.add(path)
        return content

"""A folder that many processes or machines share, as a store."""

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

MUTEX_SECONDS = 120.0
"""A change takes milliseconds: who cannot begin one after so long never will."""


class FolderStore:
    """Files below a folder. One change at a time, held off by the system's own file lock, which ends with its process.

    A file that was not there is created so that only one client can, and appears whole: where a network file system
    has no file locks worth the name, two claims on one photograph still cannot both succeed.

    Raises:
        OutputError: The folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"the folder {folder} cannot be made: {error.strerror or error}") from error
        self._mutex = folder / ".mutex"

    def change(self, decide: Callable[[FolderView], tuple[Change, _T]]) -> _T:
        """As `Store.change`.

        Raises:
            OutputError: The folder cannot be written, or its lock not be had.
        """
        try:
            for _ in range(MAX_TRIES):
                with FileLock(self._mutex, timeout=MUTEX_SECONDS):
                    view = FolderView(self.folder)
                    wanted, result = decide(view)
                    if all(self._apply(operation, view) for operation in wanted.operations):
                        return result
        except Timeout:
            raise OutputError(
                f"{self._mutex} is held by another process for {MUTEX_SECONDS:.0f} s: see which, and end it"
            ) from None
        except OSError as error:
            raise OutputError(f"the folder {self.folder} cannot be used: {error.strerror or error}") from error
        raise OutputError(f"{self.folder} could not be changed after {MAX_TRIES} tries: others are always faster")

    def _apply(self, operation: Put | Delete, view: FolderView) -> bool:
        """Does one operation; whether nobody came between."""
        path = self.folder / operation.path
        if isinstance(operation, Delete):
            path.unlink(missing_ok=True)
            return True
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.draft")
        content = operation.content
        try:
            draft.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
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
    """The folder at one moment.

    Attributes:
        seen: The files that were there when a decision asked for them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._now: float | None = None
        self.seen: set[str] = set()

    def now(self) -> float:
        """As `View.now`: the time by which the file system stamps files."""
        if self._now is None:
            probe = self._folder / f".{secrets.token_hex(8)}.clock"
            probe.touch()
            self._now = probe.stat().st_mtime
            probe.unlink()
        return self._now

    def existing(self, paths: Collection[str]) -> set[str]:
        """As `View.existing`."""
        found = {path for path in paths if (self._folder / path).is_file()}
        self.seen |= found
        return found

    def names(self, folder: str) -> set[str]:
        """As `View.names`."""
        try:
            return {path.name for path in (self._folder / folder).iterdir() if not path.name.startswith(".")}
        except FileNotFoundError:
            return set()

    def read(self, path: str) -> bytes | None:
        """As `View.read`."""
        try:
            content = (self._folder / path).read_bytes()
        except FileNotFoundError:
            return None
        self.seen.add(path)
        return content

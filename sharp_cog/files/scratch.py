"""Temporary folders that disappear with their process."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import weakref
from pathlib import Path
from types import TracebackType

from sharp_cog.files.atomic import cannot_write, lock

PREFIX = "sharp_cog-scratch-"
"""Prefix that is reserved for these folders: any unlocked folder with such a name is removed."""


class ScratchFolder:
    """A temporary folder and a context manager. The folder is removed at the end of the process at the latest.

    Creating one also removes the folders that killed processes left beside it.

    Attributes:
        path: The folder.
    """

    def __init__(self, parent: Path | None = None) -> None:
        """Create the folder.

        Args:
            parent: Folder to create it in; None is the system's folder for temporary files.

        Raises:
            OutputError: The folder cannot be created.
        """
        parent = parent or Path(tempfile.gettempdir())
        descriptor: int | None = None
        try:
            _remove_leftovers(parent)
            # Other processes remove unlocked folders with the prefix, so the folder gets its name after its lock.
            hidden = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=parent))
            if sys.platform != "win32":
                descriptor = os.open(hidden, os.O_RDONLY)
                lock(descriptor)
            self.path = hidden.rename(hidden.with_name(hidden.name[1:]))
        except OSError as error:
            raise cannot_write(parent / PREFIX, error) from error
        # The finalizer runs when the object is dropped or the interpreter exits, but not after a kill: hence the lock
        # and `_remove_leftovers`.
        self._finalizer = weakref.finalize(self, _remove, self.path, descriptor)

    def remove(self) -> None:
        """Remove the folder and its content; a second call does nothing."""
        self._finalizer()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()


def _remove(folder: Path, descriptor: int | None) -> None:
    # The lock is released last, so that no other process removes the folder at the same time.
    shutil.rmtree(folder, ignore_errors=True)
    if descriptor is not None:
        os.close(descriptor)


def _remove_leftovers(parent: Path) -> None:
    """Remove the folders that killed processes of this user left."""
    if sys.platform == "win32":  # Without locks, nothing distinguishes them from folders in use.
        return
    for leftover in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # It is no folder, belongs to another user, or was removed meanwhile.
            # Everybody can write to the folder for temporary files, so a link may have such a name: it is not followed.
            descriptor = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid() and lock(descriptor):
                    shutil.rmtree(leftover, ignore_errors=True)
            finally:
                os.close(descriptor)

"""Folders for what is needed for a while."""

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
"""Nobody else may give a folder a name that begins so: it would be removed."""


class ScratchFolder:
    """A temporary folder, and a context manager; it goes at the end of the process at the latest.

    Making one removes those that killed processes have left beside it.

    Attributes:
        path: Where it is.
    """

    def __init__(self, parent: Path | None = None) -> None:
        """Makes it.

        Args:
            parent: Where; None is the system's folder of temporary files.

        Raises:
            OutputError: It cannot be made.
        """
        parent = parent or Path(tempfile.gettempdir())
        descriptor: int | None = None
        try:
            _sweep(parent)
            # Others take it for one of ours once it has its name, and is locked by then.
            made = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=parent))
            if sys.platform != "win32":
                descriptor = os.open(made, os.O_RDONLY)
                lock(descriptor)
            self.path = made.rename(made.with_name(made.name[1:]))
        except OSError as error:
            raise cannot_write(parent / PREFIX, error) from error
        self._end = weakref.finalize(self, _remove, self.path, descriptor)

    def remove(self) -> None:
        """Removes it and what is in it; what is gone already is no fault."""
        self._end()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()


def _remove(folder: Path, descriptor: int | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if descriptor is not None:
        os.close(descriptor)


def _sweep(parent: Path) -> None:
    """Removes the folders of dead processes of this user."""
    if sys.platform == "win32":  # No locks that tell who is dead.
        return
    for left in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # No folder, another user's, or gone meanwhile.
            descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid() and lock(descriptor):
                    shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(descriptor)

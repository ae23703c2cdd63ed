"""Files that appear whole or not at all, and what processes leave behind that were killed while they wrote one."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sharp_cog.errors import OutputError

if sys.platform != "win32":
    import fcntl

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.part")


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path` for writing and renames it to `path` when the block ends well.

    On any exception, Ctrl-C included, the temporary file is removed and whatever was at `path` stays. A process that
    is killed leaves it to `sweep`.

    Raises:
        OutputError: The folder does not exist or cannot be written, or the disk is full.
    """
    # Its name is known before it is there: Ctrl-C may come as soon as it is.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    held: int | None = None
    try:
        try:
            with _created(temporary) as file:
                # Until it has its name; and a file that is open cannot be renamed on Windows.
                held = os.dup(file.fileno()) if sys.platform != "win32" else None
                yield file
            os.replace(temporary, path)
        except OSError as error:
            raise cannot_write(path, error) from error
    finally:
        if held is not None:
            os.close(held)
        with contextlib.suppress(OSError):  # It has its name, or could not be made.
            temporary.unlink()


def cannot_write(path: Path, error: OSError) -> OutputError:
    """The error to raise for a file that the system does not take; it tells how much room there is, if too little."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            reason += f", {shutil.disk_usage(path.parent).free / 1e6:.1f} MB are free"
    return OutputError(f"cannot write {path}: {reason}: check the folder, its rights and the free space")


def sweep(folder: Path) -> None:
    """Removes the temporary files that killed processes have left in a folder; those of living ones stay.

    A file that cannot be removed is left, as in a folder that is only read.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for left in [Path(entry.path) for entry in entries if _TEMPORARY.fullmatch(entry.name)]:
            with contextlib.suppress(OSError), left.open("rb") as file:
                if lock(file.fileno()):
                    left.unlink()


def lock(descriptor: int) -> bool:
    """Locks an open file or folder for as long as it is open in this process, however that ends.

    Returns:
        False if another one has locked it, or where there are no such locks.
    """
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _created(path: Path) -> BinaryIO:
    """A file that is new, and locked."""
    while True:
        file = path.open("xb")
        lock(file.fileno())
        if path.exists():
            return file
        file.close()  # Swept before it was locked.

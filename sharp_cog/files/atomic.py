"""Files that appear whole or not at all, and the removal of temporary files that killed processes left behind."""

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
"""Names of temporary files, `.<name>.<random>.part`."""


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` for writing, and rename it to `path` when the block ends without an error.

    After any exception, Ctrl-C included, the temporary file is removed and the old file at `path` stays. A killed
    process leaves its temporary file to `sweep`.

    Raises:
        OutputError: The folder does not exist or cannot be written, or the disk is full.
    """
    # The name is chosen before the file exists: Ctrl-C may arrive as soon as it does, and must find it here.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    held: int | None = None
    try:
        try:
            with _create(temporary) as file:
                # The lock must last until the rename, but Windows cannot rename an open file: elsewhere, a second
                # descriptor holds the lock after the file is closed.
                held = os.dup(file.fileno()) if sys.platform != "win32" else None
                yield file
            # Atomic, since the temporary file lies beside its target: others see the old file or the new one.
            os.replace(temporary, path)
        except OSError as error:
            raise cannot_write(path, error) from error
    finally:
        if held is not None:
            os.close(held)
        with contextlib.suppress(OSError):  # After the rename, or where it could not be created, it does not exist.
            temporary.unlink()


def cannot_write(path: Path, error: OSError) -> OutputError:
    """Return the error for a file that the system refuses to write; for a full disk, it includes the free space."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            # A quota may be used up while the disk has room, which the figure shows.
            reason += f", {shutil.disk_usage(path.parent).free / 1e6:.1f} MB are free"
    return OutputError(f"cannot write {path}: {reason}: check the folder, its permissions and the free space")


def sweep(folder: Path) -> None:
    """Remove the temporary files of killed processes from a folder; those of running processes stay.

    Files that cannot be removed stay too, such as those in a read-only folder.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for leftover in [Path(entry.path) for entry in entries if _TEMPORARY.fullmatch(entry.name)]:
            with contextlib.suppress(OSError), leftover.open("rb") as file:
                if lock(file.fileno()):  # A running process still holds the lock of its file.
                    leftover.unlink()


def lock(descriptor: int) -> bool:
    """Lock an open file or folder until this process closes it or ends, even by a kill.

    Returns:
        False if another process holds the lock, or on Windows, which has no such locks.
    """
    if sys.platform == "win32":
        return False
    try:
        # The lock belongs to the open file and not to the process, so a second descriptor of it keeps the lock.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _create(path: Path) -> BinaryIO:
    """Create a file and lock it."""
    while True:
        file = path.open("xb")
        lock(file.fileno())
        if path.exists():
            return file
        file.close()  # Another process's `sweep` removed it between its creation and the lock.

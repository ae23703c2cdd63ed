"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sharp_cog.errors import OutputError


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path` for writing and renames it to `path` when the block ends well.

    On any exception, Ctrl-C included, the temporary file is removed and whatever was at `path` stays.

    Raises:
        OutputError: The folder does not exist or cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        try:
            with temporary.open("xb") as file:
                yield file
            os.replace(temporary, path)
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(
                f"cannot write {path}: {reason}: check the folder, its rights and the free space"
            ) from error
    finally:
        temporary.unlink(missing_ok=True)

"""Reading what others control: files that may be missing, and streams that may be endless."""

from __future__ import annotations

from pathlib import Path

from sharp_cog.errors import SharpError


def read_bytes(path: Path, error_type: type[SharpError]) -> bytes:
    """Return a file's content.

    Raises:
        SharpError: Of the type given: the file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise error_type(f"{path} cannot be read: {error.strerror or error}") from error

"""Files beside or inside another file: members of a zip, and files in a folder, by their names and never too large."""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from sharp_cog.errors import SplatError
from sharp_cog.files.read import read_bytes, read_capped
from sharp_cog.text import plain, reason_of

ReadFile = Callable[[str], bytes]
"""Returns the content of a file that another file names; raises `SplatError` if it cannot be read."""

ZIP_MAGIC = b"PK\x03\x04"
MAX_MEMBER_BYTES = 1 << 28
"""Maximum size of a file in a zip after its decompression."""

_PIECE = 1 << 20
_HEADER_BYTES = 30
"""Length of the header of a zip's member, before its name."""
_NAME_LENGTH = struct.Struct("<26xH")
_ENCRYPTED = 1
"""Bit of a member's flags."""
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# A name with a folder, a drive or a host could lead anywhere.
_PLAIN_NAME = re.compile(r"[^/\\:\0]+")


def first_name(content: bytes) -> str:
    """Return the name of the first member of a zip; empty for any other content."""
    if not content.startswith(ZIP_MAGIC) or len(content) < _HEADER_BYTES:
        return ""
    (length,) = _NAME_LENGTH.unpack_from(content)
    return content[_HEADER_BYTES : _HEADER_BYTES + length].decode("utf-8", "replace")


class Archive:
    """A zip in memory.

    Args:
        content: The zip.
        suffix: Suffix of the format, for messages.

    Raises:
        SplatError: The content is not a zip, or is broken.
    """

    def __init__(self, content: bytes, suffix: str) -> None:
        self._suffix = suffix
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(content))
        # zipfile raises NotImplementedError for a version that it does not know.
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
            raise SplatError(f"the {suffix} is no zip, or is truncated: {reason_of(error)}") from error

    @property
    def names(self) -> list[str]:
        """Names of all members."""
        return self._zip.namelist()

    def require_stored(self, name: str) -> None:
        """Check that a member is neither compressed nor larger than the zip.

        Raises:
            SplatError: The member is compressed or encrypted.
        """
        member = self._zip.getinfo(name)
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
            raise SplatError(f"{plain(name)} in the {self._suffix} is compressed or encrypted: pack it again")

    def read(self, name: str) -> bytes:
        """Return the content of a member.

        Raises:
            SplatError: The member does not exist, is broken, encrypted, or larger than `MAX_MEMBER_BYTES`.
        """
        too_large = SplatError(
            f"{plain(name)} in the {self._suffix} has more than {MAX_MEMBER_BYTES} bytes: it is broken"
        )
        try:
            member = self._zip.getinfo(name)
            if member.compress_type not in _METHODS:
                raise SplatError(
                    f"{plain(name)} in the {self._suffix} is compressed by method {member.compress_type}: store it, "
                    "or use deflate"
                )
            with self._zip.open(member) as file:
                # The size in the directory may be false, so the bytes that arrive are counted.
                return read_capped(iter(lambda: file.read(_PIECE), b""), MAX_MEMBER_BYTES, too_large)
        except KeyError as error:
            raise SplatError(f"the {self._suffix} has no {plain(name)}: it is broken") from error
        # An encrypted member raises RuntimeError.
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError, struct.error) as error:
            raise SplatError(f"{plain(name)} in the {self._suffix} cannot be read: {reason_of(error)}") from error


def files_beside(folder: Path | None, suffix: str) -> ReadFile:
    """Return a function that reads files of a folder.

    Args:
        folder: The folder; None if the file that names others was given as bytes.
        suffix: Suffix or name of that file, for messages.
    """

    def read(name: str) -> bytes:
        if not _PLAIN_NAME.fullmatch(name) or name in (".", ".."):
            raise SplatError(f"the {suffix} refers to {plain(name)!r}, which is not the name of a file beside it")
        if folder is None:
            raise SplatError(f"the {suffix} refers to {plain(name)!r} beside it: give the path of the file")
        return read_bytes(folder / name, SplatError)

    return read

"""Recognition of splats among any files, so that nothing else is overwritten."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from sharp_cog.formats.levels import is_levels
from sharp_cog.formats.limits import MAX_LENGTH_M
from sharp_cog.formats.splat import RECORD

_HEAD_BYTES = 1 << 16
"""Bytes of a file that show what it is."""
_SPLAT_MEMBERS = ("meta.json", "lod-meta.json", ".usd", ".usda", ".usdc")
"""Ends of the names of files in an archive that is a splat."""


def is_splat(path: Path) -> bool:
    """Report whether a file is a splat, in any format that is written, by its content.

    A .splat has no magic bytes: it is recognized by its suffix, or the lack of one, its length and its numbers.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(b"ply"):
        return b"property float f_dc_0" in head or b"packed_position" in head
    if head.startswith(b"\x1f\x8b"):
        return _starts_like_spz(head)
    if head.startswith(b"PK\x03\x04"):
        return _is_splat_archive(path)
    if is_levels(head):
        return True
    if head.startswith(b"glTF"):
        return b"KHR_gaussian_splatting" in head
    if head[:4].lower() == b"<!do":
        return b"sse-bootstrap" in path.read_bytes()
    return head.startswith(b"NGSP") or (path.suffix.lower() in ("", ".splat") and _holds_records(path, head))


def _holds_records(path: Path, head: bytes) -> bool:
    """Report whether a file consists of the records of a .splat, whose scales and positions must make sense."""
    if path.stat().st_size % RECORD.itemsize:
        return False
    records = np.frombuffer(head[: len(head) // RECORD.itemsize * RECORD.itemsize], RECORD)
    lengths = np.concatenate([records["means"], records["scales"]], axis=1)
    return bool(
        np.isfinite(lengths).all() and (np.abs(lengths) < MAX_LENGTH_M).all() and (records["scales"] >= 0).all()
    )


def _starts_like_spz(head: bytes) -> bool:
    try:
        return zlib.decompressobj(31).decompress(head, 4) == b"NGSP"
    except zlib.error:
        return False


def _is_splat_archive(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(_SPLAT_MEMBERS) for name in archive.namelist())
    except zipfile.BadZipFile:
        return False

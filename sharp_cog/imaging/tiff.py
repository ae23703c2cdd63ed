"""Directories of TIFF files, written anew where Pillow cannot read them: BigTIFF of big-endian order, and planes.

Structure: TIFF 6.0 (Adobe, 1992), section 2, and https://www.awaresystems.be/imaging/tiff/bigtiff.html. A new directory
is put behind the end of the file, so that all places in the file stay where they were.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Literal

_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Length of a value of each type in bytes."""
_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
_SHORT, _LONG, _LONG_OF_BIG = 3, 4, {16: 4, 17: 9, 18: 13}

MAX_VALUE_BYTES = 1 << 26
"""Maximum length of one tag's values in bytes."""

_COMPRESSION, _BITS, _PHOTOMETRIC, _STRIPS, _NUM_SAMPLES, _STRIP_BYTES = 259, 258, 262, 273, 277, 279
_PLANAR, _TILES, _TILE_BYTES, _EXTRA, _SAMPLE_FORMAT, _EXIF = 284, 324, 325, 338, 339, 34665
_ORIENTATION, _PROFILE = 274, 34675
_DNG_VERSION, _SUBFILE, _REDUCED = 50706, 254, 1
_RGB, _BLACK_IS_ZERO, _SEPARATE = 2, 1, 2
_RAW_PHOTOMETRICS = (32803, 34892)
"""Colour filter array, and linear raw."""
_RAW_COMPRESSIONS = {32767: "Sony ARW", 32770: "Samsung SRW", 34713: "Nikon NEF", 65535: "Pentax PEF"}
_SUB_DIRECTORIES = (330, 34853, 40965)
"""Directories whose places a rewritten directory leaves out: smaller images, GPS, interoperability."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Values of one tag, in the byte order of the file.

    Attributes:
        kind: Number of the type.
        count: Number of values.
        content: The values.
    """

    kind: int
    count: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Directory:
    """The first directory of a TIFF, or that of its EXIF.

    Attributes:
        order: Byte order, as `struct` writes it.
        is_big: Whether the file is a BigTIFF, with 8 bytes for each place.
        entries: Entries by tag.
    """

    order: Literal["<", ">"]
    is_big: bool
    entries: dict[int, Entry]

    def integers(self, tag: int) -> tuple[int, ...]:
        """Return the values of a tag; empty if it is absent or holds other types."""
        entry = self.entries.get(tag)
        if entry is None or entry.kind not in _CODES:
            return ()
        return struct.unpack(f"{self.order}{entry.count}{_CODES[entry.kind]}", entry.content)

    def integer(self, tag: int, default: int) -> int:
        return next(iter(self.integers(tag)), default)

    @property
    def raw(self) -> str | None:
        """Name of the camera raw that the file is; None for images."""
        if _DNG_VERSION in self.entries:
            return "DNG"
        compression = _RAW_COMPRESSIONS.get(self.compression)
        is_raw = compression or self.integer(_PHOTOMETRIC, 0) in _RAW_PHOTOMETRICS
        return compression or "TIFF" if is_raw or self.integer(_SUBFILE, 0) == _REDUCED else None

    @property
    def compression(self) -> int:
        return self.integer(_COMPRESSION, 1)

    @property
    def is_rgb(self) -> bool:
        """Whether the first channels are red, green and blue."""
        return self.integer(_PHOTOMETRIC, 0) == _RGB and self.integer(_NUM_SAMPLES, 1) >= 3

    @property
    def num_planes(self) -> int:
        """Number of planes of 16 bits that hold the colours; 0 if colours are stored in another way."""
        bits = self.integers(_BITS)
        is_planar = self.integer(_PLANAR, 1) == _SEPARATE and len(bits) > 1 and set(bits) == {16}
        return len(bits) if is_planar else 0


def read_directory(content: bytes) -> Directory | None:
    """Read the first directory of a TIFF or BigTIFF; None for other files and broken ones."""
    order: Literal["<", ">"] = "<" if content.startswith(b"II") else ">"
    try:
        (version,) = struct.unpack_from(f"{order}H", content, 2)
        if content[:2] not in (b"II", b"MM") or version not in (42, 43):
            return None
        is_big = version == 43
        (place,) = struct.unpack_from(f"{order}{'Q' if is_big else 'I'}", content, 8 if is_big else 4)
        return _read(content, place, order, is_big)
    except (struct.error, ValueError):
        return None


def as_classic(content: bytes, directory: Directory) -> bytes:
    """Return the TIFF with a directory that every reader knows, in place of one of BigTIFF.

    Raises:
        ValueError: The file is broken, or a place lies beyond 4 GB.
    """
    order = directory.order
    entries = {tag: entry for tag, entry in directory.entries.items() if tag not in _SUB_DIRECTORIES}
    if _EXIF in entries:
        try:
            exif = _read(content, directory.integer(_EXIF, 0), order, directory.is_big)
            content, place = _append(content, replace(exif, entries=_without_sub_directories(exif)))
            entries[_EXIF] = Entry(_LONG, 1, struct.pack(f"{order}I", place))
        except (struct.error, ValueError):
            del entries[_EXIF]
    content, place = _append(content, replace(directory, entries=entries))
    return _with_first(content, order, place)


def plane(content: bytes, directory: Directory, index: int) -> bytes:
    """Return the TIFF with one of its planes of 16 bits as a grey image.

    Raises:
        ValueError: A place lies beyond 4 GB.
    """
    order, num_planes = directory.order, directory.num_planes
    entries = dict(directory.entries)
    for tag in (_STRIPS, _STRIP_BYTES, _TILES, _TILE_BYTES):
        if tag in entries:
            values = directory.integers(tag)
            part = values[index * len(values) // num_planes : (index + 1) * len(values) // num_planes]
            entries[tag] = Entry(_LONG, len(part), struct.pack(f"{order}{len(part)}I", *part))
    for tag, value in ((_BITS, 16), (_PHOTOMETRIC, _BLACK_IS_ZERO), (_NUM_SAMPLES, 1), (_PLANAR, 1)):
        entries[tag] = Entry(_SHORT, 1, struct.pack(f"{order}H", value))
    for tag in (_EXTRA, _SAMPLE_FORMAT, _ORIENTATION, _PROFILE, _EXIF, *_SUB_DIRECTORIES):
        entries.pop(tag, None)
    content, place = _append(content, replace(directory, entries=entries))
    return _with_first(content, order, place)


def _read(content: bytes, place: int, order: Literal["<", ">"], is_big: bool) -> Directory:
    (count,) = struct.unpack_from(f"{order}{'Q' if is_big else 'H'}", content, place)
    place += 8 if is_big else 2
    entry_bytes, inline_bytes = (20, 8) if is_big else (12, 4)
    if count > 0xFFFF:
        raise ValueError(f"it has {count} tags")
    entries: dict[int, Entry] = {}
    for start in range(place, place + count * entry_bytes, entry_bytes):
        tag, kind, number = struct.unpack_from(f"{order}HH{'Q' if is_big else 'I'}", content, start)
        num_bytes = _TYPE_BYTES.get(kind, 0) * number
        value_at = start + entry_bytes - inline_bytes
        if num_bytes > inline_bytes:
            (value_at,) = struct.unpack_from(f"{order}{'Q' if is_big else 'I'}", content, value_at)
        value = content[value_at : value_at + num_bytes] if num_bytes <= MAX_VALUE_BYTES else b""
        if num_bytes and len(value) == num_bytes:
            entries[tag] = Entry(kind, number, value)
    return Directory(order, is_big, entries)


def _without_sub_directories(directory: Directory) -> dict[int, Entry]:
    return {tag: entry for tag, entry in directory.entries.items() if tag not in _SUB_DIRECTORIES}


def _append(content: bytes, directory: Directory) -> tuple[bytes, int]:
    """Put a directory behind the end of a file; return the file and the directory's place in it."""
    order = directory.order
    content += bytes(len(content) % 2)
    place = len(content)
    values_at = place + 2 + 12 * len(directory.entries) + 4
    table, values = struct.pack(f"{order}H", len(directory.entries)), b""
    for tag, entry in sorted(directory.entries.items()):
        kind, value = entry.kind, entry.content
        if kind in _LONG_OF_BIG:
            code = "i" if kind == 17 else "I"
            try:
                numbers = struct.unpack(f"{order}{entry.count}{'q' if kind == 17 else 'Q'}", value)
                value = struct.pack(f"{order}{entry.count}{code}", *numbers)
            except struct.error as error:
                raise ValueError("a place in the file lies beyond 4 GB") from error
            kind = _LONG_OF_BIG[kind]
        table += struct.pack(f"{order}HHI", tag, kind, entry.count)
        if len(value) <= 4:
            table += value.ljust(4, b"\0")
        else:
            table += struct.pack(f"{order}I", values_at + len(values))
            values += value + bytes(len(value) % 2)
    return content + table + bytes(4) + values, place


def _with_first(content: bytes, order: str, place: int) -> bytes:
    """Return a file of classic TIFF whose first directory lies at a place."""
    return content[:2] + struct.pack(f"{order}HI", 42, place) + content[8:]

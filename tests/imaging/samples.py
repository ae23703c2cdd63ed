"""Images for tests, encoded by Pillow or put together by hand."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

RNG = np.random.default_rng(0)
NOISE: Pixels = RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8)
SMOOTH: Pixels = np.kron(RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
ORIENTATION, EXIF_IFD, FOCAL_LENGTH, FOCAL_LENGTH_35MM = 0x0112, 0x8769, 0x920A, 0xA405
MAIN_TAGS = {"make": 0x010F, "model": 0x0110}
EXIF_TAGS = {
    "focal_length": FOCAL_LENGTH,
    "focal_length_35mm": FOCAL_LENGTH_35MM,
    "zoom": 0xA404,
    "pixels_x": 0xA002,
    "pixels_y": 0xA003,
    "resolution_x": 0xA20E,
    "resolution_y": 0xA20F,
    "unit": 0xA210,
}


def encoded(image: Image.Image, format_name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def heic(pixels: Pixels, **options: object) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(file, quality=95, **options)
    return file.getvalue()


def exif(orientation: int = 1, **tags: object) -> Image.Exif:
    block = Image.Exif()
    block[ORIENTATION] = orientation
    for name, tag in MAIN_TAGS.items():
        if name in tags:
            block[tag] = tags[name]
    if inner := {tag: tags[name] for name, tag in EXIF_TAGS.items() if name in tags}:
        block[EXIF_IFD] = inner
    return block


def grey_tiff(bits: int, pixels: bytes, *, photometric: int = 1, subfile_type: int = 0) -> bytes:
    """Return an uncompressed 64 x 48 TIFF of one channel, with tags that Pillow cannot write."""
    short, long = 3, 4
    tags = [
        (254, long, subfile_type),
        (256, short, 64),
        (257, short, 48),
        (258, short, bits),
        (259, short, 1),
        (262, short, photometric),
        (273, long, 8 + 2 + 12 * 10 + 4),
        (277, short, 1),
        (278, short, 48),
        (279, long, len(pixels)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels


def s15(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def icc_profile(kind: bytes, space: bytes, connection_space: bytes, name: str, tags: dict[bytes, bytes]) -> bytes:
    """Return an ICC profile, put together by hand from ICC.1:2001 (version 2.4)."""
    tags = {
        **tags,
        b"wtpt": b"XYZ \0\0\0\0" + s15(0.9642) + s15(1.0) + s15(0.8249),
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name.encode() + bytes(79),
        b"cprt": b"text\0\0\0\0none\0",
    }
    table, data, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, value in tags.items():
        table += tag + struct.pack(">II", offset + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    size = offset + len(data)
    header = struct.pack(
        ">I4sI4s4s4s12s4s", size, b"none", 0x02400000, kind, space, connection_space, bytes(12), b"acsp"
    )
    header += bytes(128 - len(header) - 60) + s15(0.9642) + s15(1.0) + s15(0.8249) + bytes(48)
    return header + struct.pack(">I", len(tags)) + table + data


LINEAR_CURVE = b"curv" + bytes(8)


def linear_profile(name: str = "linear") -> bytes:
    """Return a profile with sRGB's primaries and a gamma of 1."""
    columns = {b"r": (0.4360, 0.2225, 0.0139), b"g": (0.3851, 0.7169, 0.0971), b"b": (0.1431, 0.0606, 0.7141)}
    tags = {key + b"XYZ": b"XYZ \0\0\0\0" + b"".join(map(s15, column)) for key, column in columns.items()}
    tags |= {key + b"TRC": LINEAR_CURVE for key in columns}
    return icc_profile(b"mntr", b"RGB ", b"XYZ ", name, tags)


def grey_profile() -> bytes:
    """Return a profile of grey with a gamma of 1.8."""
    curve = b"curv" + struct.pack(">IIH", 0, 1, round(1.8 * 256))
    return icc_profile(b"mntr", b"GRAY", b"XYZ ", "grey", {b"kTRC": curve})


def ink_profile() -> bytes:
    """Return a CMYK profile: no ink is white, cyan alone is the Lab colour (60, -30, -45), and all else is black."""
    table = bytearray(b"\0\x80\x80" * 16)
    table[0:3] = 255, 128, 128  # The last ink varies fastest: no ink is entry 0, cyan alone entry 8.
    table[24:27] = round(60 * 2.55), 128 - 30, 128 - 45
    identity = b"".join(map(s15, (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    ramps = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity + ramps * 4 + bytes(table) + ramps * 3
    return icc_profile(b"prtr", b"CMYK", b"Lab ", "ink", {b"A2B0": lut})


def huge_png(width: int, height: int) -> bytes:
    """Return a small PNG that claims another size."""
    content = bytearray(encoded(Image.new("RGB", (64, 64)), "PNG"))
    content[16:24] = struct.pack(">II", width, height)
    checksum = zlib.crc32(content[12:29])
    content[29:33] = struct.pack(">I", checksum)
    return bytes(content)


TIFF_TYPES = {"B": 1, "s": 2, "H": 3, "I": 4, "R": 5, "r": 10, "Q": 16}
"""Types of TIFF by letter: those of `struct`, s for text, R for unsigned and r for signed fractions."""


def tiff_file(
    tags: dict[int, tuple[str, object]],
    pixels: list[bytes],
    *,
    order: str = "<",
    big: bool = False,
    exif_tags: dict[int, tuple[str, object]] | None = None,
) -> bytes:
    """Return a TIFF or BigTIFF of any tags; each part of the pixels becomes a strip."""
    number, header_bytes = ("Q", 16) if big else ("I", 8)
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    body, places = b"", []
    for part in pixels:
        places.append(header_bytes + len(body))
        body += part + bytes(len(part) % 2)

    def packed(letter: str, value: object) -> tuple[int, bytes]:
        if letter == "s":
            text = str(value).encode() + b"\0"
            return len(text), text
        values: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
        if letter in "Rr":
            code = order + ("II" if letter == "R" else "ii")
            return len(values), b"".join(struct.pack(code, round(each * 10_000), 10_000) for each in values)
        return len(values), struct.pack(f"{order}{len(values)}{letter}", *values)

    def directory(entries: dict[int, tuple[str, object]], place: int) -> bytes:
        entry_bytes, inline_bytes = (20, 8) if big else (12, 4)
        values_at = place + (8 if big else 2) + entry_bytes * len(entries) + inline_bytes
        table, values = struct.pack(order + ("Q" if big else "H"), len(entries)), b""
        for tag, (letter, value) in sorted(entries.items()):
            count, content = packed(letter, value)
            table += struct.pack(order + "HH" + number, tag, TIFF_TYPES[letter], count)
            if len(content) <= inline_bytes:
                table += content.ljust(inline_bytes, b"\0")
            else:
                table += struct.pack(order + number, values_at + len(values))
                values += content + bytes(len(content) % 2)
        return table + bytes(inline_bytes) + values

    longs = "Q" if big else "I"
    tags = {**tags, 273: (longs, places), 279: (longs, [len(part) for part in pixels])}
    if exif_tags is not None:
        place = header_bytes + len(body)
        body += directory(exif_tags, place)
        tags[EXIF_IFD] = (longs, place)
    place = header_bytes + len(body)
    start = struct.pack(order + "HHQ", 8, 0, place) if big else struct.pack(order + "I", place)
    return head + start + body + directory(tags, place)


def rgb_tags(pixels: Pixels, *, bits: int, planar: int = 1, compression: int = 1) -> dict[int, tuple[str, object]]:
    height, width, channels = pixels.shape
    sizes = {256: ("I", width), 257: ("I", height), 258: ("H", [bits] * channels), 277: ("H", channels)}
    return {**sizes, 259: ("H", compression), 262: ("H", 2), 278: ("I", height), 284: ("H", planar)}

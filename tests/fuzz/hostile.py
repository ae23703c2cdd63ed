"""Parts of inputs that mislead."""

from __future__ import annotations

import struct
import zlib


def zeros(num: int, head: bytes = b"") -> bytes:
    """A zlib stream of a head and of many zeros."""
    deflate = zlib.compressobj(9)
    pieces = [deflate.compress(head), *(deflate.compress(bytes(1 << 20)) for _ in range(num >> 20))]
    return b"".join([*pieces, deflate.compress(bytes(num & (1 << 20) - 1)), deflate.flush()])


def tiff(tags: dict[int, int], data: bytes, width: int = 64, height: int = 48) -> bytes:
    """A TIFF of grey bytes in deflate, put together by hand; `tags` come on top."""
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1} | tags
    offset = 8 + 2 + 12 * len(tags) + 4
    places = {273: offset, 324: offset, 279: len(data), 325: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, places.get(tag, tags[tag])) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


STRIP, TILE = (273, 278, 279), (322, 323, 324, 325)
"""The tags of a picture in one strip, and in one tile; `tiff` sets where it lies and how long it is."""

"""Sizes of images by their headers, without decoding: what a service must know before it gives an image memory."""

from __future__ import annotations

import re
import struct

from sharp_cog.imaging import tiff
from sharp_cog.imaging.boxes import read_container
from sharp_cog.imaging.kinds import name_raw

_WIDTH, _HEIGHT = 256, 257
# A frame header of JPEG (ITU-T T.81, B.2.2); C4, C8 and CC are other segments. In front of it, segments follow one
# another, and their length skips what may look like a marker.
_FRAME = re.compile(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]")
_SEGMENT = re.compile(rb"\xff+([\x01-\xfe])")
_MAX_SEGMENTS = 10_000


def count_pixels(content: bytes) -> int:
    """Return the number of pixels that an image's header promises; 0 if there is none that can be read.

    The decoder has limits of its own and will refuse a file whose header lies or is broken. A camera raw has no simple
    header; its bytes are taken for its pixels.
    """
    try:
        width, height = _size(content)
    except (struct.error, ValueError, IndexError):
        return 0
    if name_raw(content):
        return max(width * height, len(content))
    return abs(width * height)


def canvas(content: bytes) -> tuple[int, int]:
    """Return width and height in the header of a GIF or WebP; zeros for other files."""
    if content.startswith(b"GIF8"):
        width, height = struct.unpack_from("<HH", content, 6)
    elif content[8:16] == b"WEBPVP8X":
        width, height = (int.from_bytes(content[start : start + 3], "little") + 1 for start in (24, 27))
    elif content[8:16] == b"WEBPVP8L":
        bits = int.from_bytes(content[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif content[8:16] == b"WEBPVP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", content, 26))
    else:
        width = height = 0
    return width, height


def _size(content: bytes) -> tuple[int, int]:
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = struct.unpack_from(">II", content, 16)
    elif content.startswith(b"\xff\xd8"):
        width, height = _size_of_jpeg(content)
    elif content.startswith(b"BM"):
        width, height = struct.unpack_from("<ii", content, 18)
    elif content[4:8] == b"ftyp":
        container = read_container(content)
        width, height = (container.size if container is not None else None) or (0, 0)
    elif directory := tiff.read_directory(content):
        width, height = directory.integer(_WIDTH, 0), directory.integer(_HEIGHT, 0)
    else:
        width, height = canvas(content)
    return width, height


def _size_of_jpeg(content: bytes) -> tuple[int, int]:
    position = 2
    for _ in range(_MAX_SEGMENTS):
        found = _SEGMENT.search(content, position)
        if found is None:
            break
        if _FRAME.match(content, found.end() - 2):
            height, width = struct.unpack_from(">HH", content, found.end() + 3)
            return width, height
        position = found.end() + max(2, int.from_bytes(content[found.end() : found.end() + 2], "big"))
    return 0, 0

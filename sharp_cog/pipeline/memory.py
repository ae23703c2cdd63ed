"""Memory that decoding may take, by the headers of image and depth map: small files may hold hundreds of megapixels."""

from __future__ import annotations

import io
import re
import struct
import zipfile

from sharp_cog.imaging.sizes import count_pixels

# Measured with the largest files of each format, from the first byte to the prediction; see benchmarks/robustness.md.
IMAGE_BYTES_PER_PIXEL = 10
"""Bytes of memory for each pixel of an image while it is decoded."""
DECODED_BYTES_PER_PIXEL = 3
"""Bytes for each pixel of a decoded image."""
DEPTH_BYTES_PER_PIXEL = 34
"""Bytes for each pixel of a depth map while it is decoded and interpreted."""

_NPY = re.compile(rb"'descr':\s*'[<>|=]?[fiu](\d+)'")
_NPY_HEADER_BYTES = 1 << 12
_PFM = re.compile(rb"P[fF]\s+(\d{1,9})\s+(\d{1,9})\s")
_EXR_WINDOW = b"dataWindow\0box2i\0"


def needed_bytes(image: bytes, depth: bytes | None) -> int:
    """Return the most memory that a request needs at once until it is predicted, besides the network.

    Args:
        image: Content of the image file.
        depth: Content of the depth file, or None.
    """
    image_px, depth_px = count_pixels(image), count_depth_pixels(depth) if depth else 0
    # The image is decoded first, and its pixels stay while the depth map is decoded.
    at_image = IMAGE_BYTES_PER_PIXEL * image_px
    at_depth = DECODED_BYTES_PER_PIXEL * image_px + DEPTH_BYTES_PER_PIXEL * depth_px
    return len(image) + len(depth or b"") + max(at_image, at_depth)


def count_depth_pixels(content: bytes) -> int:
    """Return the number of pixels that a depth file's header promises; 0 if there is none that can be read."""
    try:
        if content.startswith(b"\x93NUMPY"):
            found = _NPY.search(content, 0, _NPY_HEADER_BYTES)
            return len(content) // max(1, int(found[1])) if found else len(content)
        if content.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                # An array of half floats has the most pixels for its bytes.
                return max((member.file_size // 2 for member in archive.infolist()), default=0)
        if found := _PFM.match(content):
            return int(found[1]) * int(found[2])
        if content.startswith(b"\x76\x2f\x31\x01"):
            place = content.index(_EXR_WINDOW) + len(_EXR_WINDOW) + 4
            left, top, right, bottom = map(int, struct.unpack_from("<4i", content, place))
            return max(0, (right - left + 1) * (bottom - top + 1))
    except (struct.error, ValueError, zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError):
        return 0
    return count_pixels(content)

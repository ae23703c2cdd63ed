"""What Pillow's parsers and libtiff would spend minutes or gigabytes on, told before they are let at it.

No limit here comes near what cameras and programs write. What is beyond one raises ValueError or RuntimeError, which
the callers translate as they do what decoders raise.
"""

from __future__ import annotations

import io
import re

from PIL import BmpImagePlugin, Image, ImageFile, TiffImagePlugin

MAX_READS = 500_000
"""Of a parser in one file: each part of it, such as a chunk or a run, takes two or more."""
MAX_JPEG_SEGMENTS, MAX_JPEG_BLOCKS, MAX_JPEG_SCANS = 10_000, 200, 100
"""In all; with EXIF or Photoshop's tags, which Pillow joins and takes apart; scans, each of which takes the time of the
whole picture, however short it is."""
MAX_JPEG_FILL_BYTES = 100_000
MAX_TILE_PX = 1 << 26
MAX_RUN_LENGTH_PX = 20_000_000
"""Of a BMP of runs, which are expanded in Python."""

_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
"""Neither a stuffed zero, nor a fill byte, nor one of the markers without content but the picture's end."""
_END, _SCAN, _APP1, _APP13 = 0xD9, 0xDA, 0xE1, 0xED


class MeteredFile(io.BytesIO):
    """Bytes in which nobody reads without end.

    Raises:
        RuntimeError: By `read`, after `MAX_READS`.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._num_reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._num_reads += 1
        if self._num_reads > MAX_READS:
            raise RuntimeError(f"it has too many parts: more than {MAX_READS} reads")
        return super().read(size)


def check_jpeg(content: bytes) -> None:
    """Walks over the segments of a JPEG up to its end.

    Raises:
        ValueError: There are too many segments, blocks of tags, fill bytes or scans.
    """
    position, num_segments, num_blocks, num_fill_bytes, num_scans = 2, 0, 0, 0, 0
    while match := _MARKER.search(content, position, len(content) if num_scans else position + MAX_JPEG_FILL_BYTES):
        marker = match[0][1]
        if marker == _END and num_scans:  # Pillow does not end there while there was no scan.
            return
        num_segments += 1
        if not num_scans:
            num_fill_bytes += match.start() - position
            num_blocks += marker in (_APP1, _APP13) and content.startswith((b"Exif\0", b"Photoshop"), match.end() + 2)
        num_scans += marker == _SCAN
        for count, limit, name in (
            (num_segments, MAX_JPEG_SEGMENTS, "segments"),
            (num_blocks, MAX_JPEG_BLOCKS, "blocks of tags"),
            (num_fill_bytes, MAX_JPEG_FILL_BYTES, "fill bytes"),
            (num_scans, MAX_JPEG_SCANS, "scans"),
        ):
            if count > limit:
                raise ValueError(f"it has more than {limit} {name}")
        length = 0 if marker == _END else max(2, int.from_bytes(content[match.end() : match.end() + 2], "big"))
        position = match.end() + length
    if not num_scans and len(content) - position > MAX_JPEG_FILL_BYTES:
        raise ValueError(f"it has more than {MAX_JPEG_FILL_BYTES} fill bytes")


def prepare(image: ImageFile.ImageFile) -> None:
    """Makes an opened picture ready to be loaded.

    A TIFF is given its memory, which the plugin would only do below a global limit.

    Raises:
        ValueError: Its tiles or its runs take more than a picture of its size should.
    """
    if isinstance(image, BmpImagePlugin.BmpImageFile):
        is_of_runs = any(tile.codec_name == "bmp_rle" for tile in image.tile)
        if is_of_runs and image.width * image.height > MAX_RUN_LENGTH_PX:
            raise ValueError(f"it is a BMP of runs and has more than {MAX_RUN_LENGTH_PX} pixels")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        # Anything may stand there, and a tuple times a number is many tuples.
        tile_px = int(tags.get(TiffImagePlugin.TILEWIDTH, 0)) * int(tags.get(TiffImagePlugin.TILELENGTH, 0))
        if tile_px > MAX_TILE_PX:
            raise ValueError(f"its tiles have {tile_px} pixels, the limit is {MAX_TILE_PX}")
        stored_size = (tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH])
        # The loader trusts this memory to have the size of the tiles, which is the picture's before it is turned.
        if sorted(stored_size) == sorted(image.size):
            image.im = Image.new(image.mode, stored_size, None).im

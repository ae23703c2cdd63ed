"""Limits on files that would cost Pillow's parsers or libtiff minutes or gigabytes, checked before these see the file.

Files of cameras and programs stay far below every limit. A file beyond one raises ValueError or RuntimeError, which
callers translate together with the exceptions of decoders.
"""

from __future__ import annotations

import io
import re

from PIL import BmpImagePlugin, Image, ImageFile, TiffImagePlugin

# Each part of a file, such as a chunk of a PNG or a run of a BMP, takes a parser two reads or more. Pillow's parsers
# loop over the parts in Python without a limit, so that some megabytes of empty parts keep them busy for minutes.
MAX_READS = 500_000
"""Maximum number of reads of one file by a parser."""

MAX_JPEG_SEGMENTS = 10_000
"""Maximum number of segments of a JPEG."""

# Pillow appends each block of EXIF to those before, which takes quadratic time, and walks over Photoshop's in Python.
MAX_JPEG_BLOCKS = 200
"""Maximum number of segments of a JPEG that hold EXIF or Photoshop's tags."""

# libjpeg goes over the whole image for each scan of a progressive JPEG, even if the scan has only a few bytes.
MAX_JPEG_SCANS = 100
"""Maximum number of scans of a JPEG."""

MAX_JPEG_FILL_BYTES = 100_000
"""Maximum number of bytes between the segments of a JPEG, which Pillow skips one by one."""

MAX_TILE_PX = 1 << 26
"""Maximum number of pixels of a TIFF's tile, whose memory libtiff allocates whatever the size of the image."""

MAX_RUN_LENGTH_PX = 20_000_000
"""Maximum number of pixels of a run-length encoded BMP, which Pillow decodes in Python."""

# Matches neither stuffed zeros, nor fill bytes, nor markers without content, except for the end of the image.
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
_END, _SCAN, _APP1, _APP13 = 0xD9, 0xDA, 0xE1, 0xED


class MeteredFile(io.BytesIO):
    """File in memory that can be read `MAX_READS` times; then `read` raises RuntimeError."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._num_reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._num_reads += 1
        if self._num_reads > MAX_READS:
            raise RuntimeError(f"it has too many parts: more than {MAX_READS} reads")
        return super().read(size)


def check_jpeg(content: bytes) -> int:
    """Walk over the segments of a JPEG up to its end, as Pillow will do.

    Returns:
        The place behind the end marker of the first image; the length of the content if there is none.

    Raises:
        ValueError: There are too many segments, blocks of tags, fill bytes or scans.
    """
    # Up to the first scan, segments follow one another, with at most some fill bytes in between. From there on, markers
    # are searched in the coded pixels, in which a byte of 255 is always followed by a stuffed zero.
    position, num_segments, num_blocks, num_fill_bytes, num_scans = 2, 0, 0, 0, 0
    while match := _MARKER.search(content, position, len(content) if num_scans else position + MAX_JPEG_FILL_BYTES):
        marker = match[0][1]
        if marker == _END and num_scans:  # Before the first scan, Pillow goes on after an end marker.
            return match.end()
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
    return len(content)


def prepare_to_load(image: ImageFile.ImageFile) -> None:
    """Check an opened image before its pixels are decoded, and allocate the memory of a TIFF.

    Raises:
        ValueError: The image is a run-length encoded BMP that is too large, or a TIFF whose tiles are.
    """
    if isinstance(image, BmpImagePlugin.BmpImageFile):
        is_run_length = any(tile.codec_name == "bmp_rle" for tile in image.tile)
        if is_run_length and image.width * image.height > MAX_RUN_LENGTH_PX:
            raise ValueError(f"it is a run-length encoded BMP with more than {MAX_RUN_LENGTH_PX} pixels")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        # A tag may hold a tuple, and a tuple times a large number would fill the memory. `int` raises TypeError first.
        tile_px = int(tags.get(TiffImagePlugin.TILEWIDTH, 0)) * int(tags.get(TiffImagePlugin.TILELENGTH, 0))
        if tile_px > MAX_TILE_PX:
            raise ValueError(f"its tiles have {tile_px} pixels, the limit is {MAX_TILE_PX}")
        stored_size = (tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH])
        # The plugin would allocate this memory itself, but only below Pillow's limit, which is global to the process.
        # Its loader trusts the memory to have the stored size, which is not `image.size` if the image is rotated.
        if sorted(stored_size) == sorted(image.size):
            image.im = Image.new(image.mode, stored_size, None).im

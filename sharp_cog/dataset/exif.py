"""Writes a focal length, and the camera that it belongs to, into a JPEG that lacks one, without touching its pixels."""

from __future__ import annotations

import logging
import math
from fractions import Fraction
from typing import Any

from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from sharp_cog.imaging.pixels import DECODER_ERRORS

_LOG = logging.getLogger(__name__)

_SOI, _APP0, _APP1, _SOS = b"\xff\xd8", 0xE0, 0xE1, 0xDA
_EXIF = b"Exif\0\0"
_MAX_SEGMENT_BYTES = 0xFFFF - 2
"""Largest content of a segment, whose length is two bytes and counts itself."""

_MAX_RATIONAL = 0xFFFF_FFFF
_Tag = ExifTags.Base
_FOCAL_LENGTHS = (ExifTags.Base.FocalLength, ExifTags.Base.FocalLengthIn35mmFilm)


def with_focal_length(jpeg: bytes, focal_length_mm: float, *, make: str = "", model: str = "") -> bytes:
    """Write an EXIF focal length; pixels and all other segments stay the same, byte for byte.

    Existing tags are kept, except a thumbnail, which Pillow cannot write. A maker's note is kept too, but addresses
    inside it may become wrong.

    Args:
        jpeg: A JPEG. Other bytes are returned unchanged, and so is a JPEG that has a focal length, or whose EXIF is
            broken or would become too large for its segment.
        focal_length_mm: Focal length of the lens, not its 35 mm equivalent.
        make: Maker of the camera, from which the size of the sensor follows; empty where it is not known.
        model: Model of the camera.

    Raises:
        ValueError: EXIF cannot hold the focal length.
    """
    if not (math.isfinite(focal_length_mm) and 0.001 <= focal_length_mm <= _MAX_RATIONAL / 1000):
        raise ValueError(f"focal_length_mm is {focal_length_mm}: give millimetres")
    segments = _segments(jpeg)
    if segments is None:
        return jpeg
    # The steps: find the EXIF segments, write their block again with the new tag, and put one segment in their place.
    texts: dict[int, str] = {tag: text for tag, text in ((_Tag.Make, make), (_Tag.Model, model)) if text}
    blocks = [(start, end) for marker, start, end in segments if _is_exif(jpeg, marker, start)]
    try:
        # Several segments are parts of one block, as Pillow reads them too.
        block = b"".join(jpeg[start + 10 : end] for start, end in blocks)
        content = _with_tags(_EXIF + block if block else b"", focal_length_mm, texts)
    except DECODER_ERRORS as error:
        _LOG.warning("the image's EXIF block is broken and was left unchanged: %s", error)
        return jpeg
    if content is None:
        return jpeg
    if len(content) > _MAX_SEGMENT_BYTES:
        _LOG.warning("the image's EXIF block has no room for a focal length")
        return jpeg
    segment = bytes((0xFF, _APP1)) + (len(content) + 2).to_bytes(2, "big") + content
    if not blocks:
        # Both EXIF and JFIF are specified to come first. All readers accept JFIF followed by EXIF.
        end = segments[0][2] if segments and segments[0][0] == _APP0 else len(_SOI)
        blocks = [(end, end)]
    parts, position = [], 0
    for index, (start, end) in enumerate(blocks):
        parts += [jpeg[position:start], segment if index == 0 else b""]
        position = end
    return b"".join((*parts, jpeg[position:]))


def _segments(jpeg: bytes) -> list[tuple[int, int, int]] | None:
    """Return marker, start and end of every segment before the pixels; None if the bytes are no JPEG."""
    if not jpeg.startswith(_SOI + b"\xff"):
        return None
    segments: list[tuple[int, int, int]] = []
    start = len(_SOI)
    while True:
        code = start
        while jpeg[code : code + 1] == b"\xff":  # Fill bytes before a marker.
            code += 1
        length = int.from_bytes(jpeg[code + 1 : code + 3], "big")
        end = code + 1 + length
        # No marker where one must be, or a segment that ends beyond the file: better no change than a wrong one.
        if code == start or length < 2 or end > len(jpeg):
            return None
        # Compressed pixels follow, which are not cut into segments.
        if jpeg[code] == _SOS:
            return segments
        segments.append((jpeg[code], code - 1, end))
        start = end


def _is_exif(jpeg: bytes, marker: int, start: int) -> bool:
    return marker == _APP1 and jpeg.startswith(_EXIF, start + 4)


def _with_tags(block: bytes, focal_length_mm: float, texts: dict[int, str]) -> bytes | None:
    """Return the EXIF block with the focal length, and with the texts if it has none; None if it has a focal length."""
    exif = Image.Exif()
    exif.load(block)
    camera = exif.get_ifd(ExifTags.IFD.Exif)
    if any(tag in tags for tag in _FOCAL_LENGTHS for tags in (exif, camera)):
        return None
    # Thousandths of a millimetre are finer than any lens is labelled.
    camera[ExifTags.Base.FocalLength] = IFDRational(Fraction(round(focal_length_mm * 1000), 1000))
    if not any(tag in exif for tag in texts):  # Make and model belong together.
        for tag, text in texts.items():
            exif[tag] = text.encode("ascii", "replace").decode()
    # The nested blocks are read while their addresses are still there; Pillow writes them at new ones.
    interop = exif.get_ifd(ExifTags.IFD.Interop)
    camera.pop(ExifTags.IFD.Interop, None)  # Its old address.
    if interop:
        camera[ExifTags.IFD.Interop] = _as_written(interop)
    places = exif.get_ifd(ExifTags.IFD.GPSInfo)
    for tag, value in _as_written(dict(exif)).items():
        exif[tag] = value
    exif[ExifTags.IFD.Exif] = _as_written(camera)
    if places:
        exif[ExifTags.IFD.GPSInfo] = _as_written(places)
    return exif.tobytes()


def _as_written(tags: dict[int, Any]) -> dict[int, Any]:
    """Return the tags with non-ASCII texts as their original bytes: Pillow reads Latin-1, but would write `?`."""
    return {
        tag: value.encode("latin-1") if isinstance(value, str) and not value.isascii() else value
        for tag, value in tags.items()
    }

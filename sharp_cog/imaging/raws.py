"""Camera raws, which the optional package rawpy develops with LibRaw."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable

from PIL import ExifTags, Image

from sharp_cog.errors import ImageError
from sharp_cog.imaging.pixels import DECODER_ERRORS

RAW_SUFFIXES = frozenset(
    {
        *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".raf", ".orf", ".rw2", ".pef"),
        *(".srw", ".x3f", ".mrw", ".iiq", ".3fr", ".fff", ".erf", ".kdc", ".dcr", ".mos", ".rwl"),
    }
)
"""Suffixes of the files in a folder that are taken for camera raws."""


def can_develop() -> bool:
    """Report whether the extra `raw` is installed."""
    return importlib.util.find_spec("rawpy") is not None


def decode_raw(
    content: bytes, name: str, check_size: Callable[[int, int], None]
) -> tuple[Image.Image, dict[int, object]]:
    """Develop a camera raw to upright 8-bit sRGB, with the white balance of the camera.

    Args:
        content: The file.
        name: Name of the raw format, for the error.
        check_size: Check of width and height before memory is allocated.

    Returns:
        The image, and its EXIF tags.

    Raises:
        ImageError: The package is not installed, or LibRaw cannot read the file.
    """
    try:
        import rawpy
    except ImportError as error:
        raise ImageError(
            f"the image is a camera raw ({name}): install the extra 'raw' to read it (.venv/bin/pip install -e "
            "'.[raw]'), or export it as JPEG or TIFF"
        ) from error
    try:
        with rawpy.imread(io.BytesIO(content)) as raw:
            check_size(raw.sizes.iwidth, raw.sizes.iheight)
            image = Image.fromarray(raw.postprocess(use_camera_wb=True, output_bps=8))
            focal_length_mm = float(raw.other.focal_length)
    except rawpy.LibRawError as error:
        raise ImageError(
            f"the image is a camera raw ({name}) that LibRaw cannot read ({error}): export it as JPEG or TIFF"
        ) from error
    exif = _read_exif(content)
    tags: dict[int, object] = {**dict(exif), **exif.get_ifd(ExifTags.IFD.Exif)}
    if focal_length_mm > 0:
        tags.setdefault(ExifTags.Base.FocalLength, focal_length_mm)
    return image, tags


def _read_exif(content: bytes) -> Image.Exif:
    """Read the tags of a raw, whose structure is that of a TIFF, or which has blocks of TIFF in it."""
    exif = Image.Exif()
    try:
        if content.startswith((b"II", b"MM")):
            # The third and fourth byte are the maker's own in some raws.
            order = b"II*\0" if content.startswith(b"II") else b"MM\0*"
            exif.load(b"Exif\0\0" + order + content[4:])
        else:
            # Canon's CR3 has the camera in a box CMT1 and EXIF in CMT2; Fujifilm's RAF begins with a JPEG.
            for name in (b"CMT1", b"CMT2"):
                start = content.find(name, 0, 1 << 20)
                if start >= 0:
                    part = Image.Exif()
                    part.load(b"Exif\0\0" + content[start + 4 : start + 4 + (1 << 16)])
                    exif.update(dict(part))
            start = content.find(b"Exif\0\0", 0, 1 << 16)
            if content.startswith(b"FUJIFILM") and start >= 0:
                exif.load(content[start : start + (1 << 16)])
    except DECODER_ERRORS:
        return Image.Exif()
    return exif

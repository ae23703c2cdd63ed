"""Bytes of a photograph in, upright sRGB pixels and a camera out."""

from __future__ import annotations

import io
import logging
import math
import numbers
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from sharp_cog.config.options import FOCAL_LENGTH_MM_RANGE, PredictOptions
from sharp_cog.errors import ImageError
from sharp_cog.geometry.camera import DEFAULT_FOCAL_LENGTH_MM, Camera, FocalLengthSource, focal_length_px_from_mm
from sharp_cog.imaging.limits import MeteredFile, check_jpeg, prepare
from sharp_cog.imaging.pixels import DECODER_ERRORS, to_srgb
from sharp_cog.text import reason_of

_LOG = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WebP", "TIFF", "BMP", "GIF", "HEIC", "AVIF")
SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"),
        *(".heic", ".heif", ".hif", ".avif"),
    }
)
"""What is taken for a picture in a folder; a file that is named is read whatever its name."""
DEFAULT_MAX_PIXELS = 100_000_000
MIN_SIDE_PX = 32
MAX_ASPECT = 10

# The only plugins that may see the bytes, by how the bytes begin. They are called directly: `Image.open` would ask the
# global registry and warn about, or refuse, sizes by a global limit where `max_pixels` is the one that counts.
_PLUGINS: tuple[tuple[bytes, Callable[[io.BytesIO], ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),  # Also the first frame of a multi-picture JPEG.
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"RIFF", WebPImagePlugin.WebPImageFile),
    (b"II*\0", TiffImagePlugin.TiffImageFile),
    (b"MM\0*", TiffImagePlugin.TiffImageFile),
    (b"II+\0", TiffImagePlugin.TiffImageFile),  # BigTIFF
    (b"MM\0+", TiffImagePlugin.TiffImageFile),
    (b"GIF8", GifImagePlugin.GifImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
)
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}
_PHONE_FOCAL_LIMIT_MM, _PHONE_CROP_FACTOR = 10.0, 8.4
"""A focal length under 10 mm is taken for a phone's sensor, as Apple's code does."""

_NEW_SUBFILE_TYPE, _REDUCED, _DNG_VERSION = 254, 1, 50706
_STRIP_PX = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceImage:
    """A decoded photograph.

    Attributes:
        rgb: (height, width, 3) uint8, sRGB, upright, contiguous.
        camera: Its size, its focal length and where that came from.
        image_format: The format that the bytes were in, such as `JPEG`.
        orientation: How the stored image was rotated or mirrored to be upright, as EXIF asked for; None where it was
            upright already. A depth map in the sensor's orientation is treated the same way.
    """

    rgb: NDArray[np.uint8]
    camera: Camera
    image_format: str
    orientation: Image.Transpose | None = None

    def __post_init__(self) -> None:
        expected = (self.camera.height, self.camera.width, 3)
        if self.rgb.shape != expected or self.rgb.dtype != np.uint8:
            raise ValueError(f"rgb is {self.rgb.dtype} of shape {self.rgb.shape}, expected uint8 of {expected}")


def decode(
    image_bytes: bytes, options: PredictOptions | None = None, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> SourceImage:
    """Decodes a photograph, told by its content and not by its name.

    Args:
        image_bytes: JPEG, PNG, WebP, TIFF, BMP, GIF (first frame), HEIC or AVIF.
        options: May bring the focal length; without, EXIF does, else 30 mm.
        max_pixels: Larger pictures are refused before they are decoded.

    Raises:
        ImageError: Not a picture, broken, too large, too small or too long.
    """
    if not image_bytes:
        raise ImageError("the picture has zero bytes: give the file's content")
    with _translate_errors():
        image, is_upright = _open(image_bytes, max_pixels)
        image_format, exif = image.format or "HEIC", _read_exif(image)
        image = to_srgb(image)
        orientation = None if is_upright else _ORIENTATIONS.get(exif.get(ExifTags.Base.Orientation))
        rgb = _to_array(image if orientation is None else image.transpose(orientation))
    return _source_image(rgb, exif, options, image_format=image_format, orientation=orientation)


def from_pil(
    image: Image.Image, options: PredictOptions | None = None, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> SourceImage:
    """Take an image that Pillow has opened, with its EXIF and colour profile.

    Raises:
        ImageError: The image is broken, too large, too small or too long.
    """
    with _translate_errors():
        _check_size(*image.size, max_pixels)
        _check_kind(image)
        image_format, exif = image.format or "PIL", _read_exif(image)
        upright = to_srgb(image)
        orientation = _ORIENTATIONS.get(exif.get(ExifTags.Base.Orientation))
        rgb = _to_array(upright if orientation is None else upright.transpose(orientation))
    return _source_image(rgb, exif, options, image_format=image_format, orientation=orientation)


def from_array(
    rgb: NDArray[Any], options: PredictOptions | None = None, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> SourceImage:
    """Take upright pixels.

    Args:
        rgb: (height, width, 3) uint8, sRGB.
        options: May hold the focal length; otherwise it is 30 mm.
        max_pixels: Larger images are refused.

    Raises:
        TypeError: The array has another shape or type.
        ImageError: The image is too large, too small or too long.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise TypeError(
            f"image is a numpy array of shape {rgb.shape} and type {rgb.dtype}: give (height, width, 3) uint8 in sRGB"
        )
    _check_size(rgb.shape[1], rgb.shape[0], max_pixels)
    return _source_image(np.ascontiguousarray(rgb), {}, options, image_format="array", orientation=None)


def _source_image(
    rgb: NDArray[np.uint8],
    exif: dict[int, object],
    options: PredictOptions | None,
    *,
    image_format: str,
    orientation: Image.Transpose | None,
) -> SourceImage:
    height, width = rgb.shape[:2]
    focal_length_px, source = _focal_length(exif, options or PredictOptions(), width=width, height=height)
    camera = Camera(width=width, height=height, focal_length_px=focal_length_px, focal_length_source=source)
    return SourceImage(rgb=rgb, camera=camera, image_format=image_format, orientation=orientation)


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Turns what a decoder raises into an ImageError: the one boundary to foreign exceptions."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # WebP and GIF ask Pillow's global limit even so; it lies above ours unless `max_pixels` was raised.
        raise ImageError(f"the picture is too large for Pillow to decode ({reason_of(error)}): downscale it") from error
    except DECODER_ERRORS as error:
        raise ImageError(f"the picture is broken or truncated ({reason_of(error)}): export or send it again") from error


def _open(image_bytes: bytes, max_pixels: int) -> tuple[Image.Image, bool]:
    """Opens and decodes; says whether the picture is upright, or EXIF still has to turn it."""
    image: Image.Image
    file = MeteredFile(image_bytes)
    brands = _brands(image_bytes)
    if brands & _HEIF_BRANDS and not brands & _AVIF_BRANDS:
        heif = pillow_heif.open_heif(file, convert_hdr_to_8bit=True)
        _check_size(heif.size[0], heif.size[1], max_pixels)
        # libheif has turned it by the file's own transformations, which by its standard outrank EXIF.
        image = heif.to_pillow()
        _check_size(*image.size, max_pixels)  # A box may crop what another one tells the size of.
        return image, True
    plugin: Callable[[io.BytesIO], ImageFile.ImageFile] | None = AvifImagePlugin.AvifImageFile
    if not brands & _AVIF_BRANDS:
        plugin = next((plugin for magic, plugin in _PLUGINS if image_bytes.startswith(magic)), None)
    if plugin is None:
        raise ImageError(f"the bytes are not a picture: give one of {', '.join(FORMATS)}")
    _check_canvas(image_bytes, max_pixels)
    if plugin is JpegImagePlugin.JpegImageFile:
        check_jpeg(image_bytes)
    image = plugin(file)
    _check_size(*image.size, max_pixels)
    _check_kind(image)
    prepare(image)
    image.load()
    return image, False


def _check_canvas(image_bytes: bytes, max_pixels: int) -> None:
    """Checks the size in the header of those formats whose plugins allocate when they open."""
    width = height = 0
    if image_bytes.startswith(b"GIF8"):
        width, height = struct.unpack_from("<HH", image_bytes, 6)
    elif image_bytes[8:16] == b"WEBPVP8X":
        width, height = (int.from_bytes(image_bytes[start : start + 3], "little") + 1 for start in (24, 27))
    elif image_bytes[8:16] == b"WEBPVP8L":
        bits = int.from_bytes(image_bytes[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif image_bytes[8:16] == b"WEBPVP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", image_bytes, 26))
    if width * height > max_pixels:
        _check_size(width, height, max_pixels)


def _check_kind(image: Image.Image) -> None:
    """Refuses what can be decoded and is no photograph all the same: previews of camera raws, and floats."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    if tags.get(_NEW_SUBFILE_TYPE) == _REDUCED or _DNG_VERSION in tags:
        raise ImageError("the picture is a camera raw, in which only a preview can be read: export it as JPEG or TIFF")
    if image.mode == "F":
        raise ImageError("the picture holds floats, whose white is unknown: export it with 8 or 16 bits a channel")


def _brands(image_bytes: bytes) -> set[bytes]:
    """The brands of an ISO base media file (HEIC, AVIF), its own and the compatible ones; empty for other files."""
    if image_bytes[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(image_bytes[:4], "big"), 256)
    return {image_bytes[8:12], *(image_bytes[start : start + 4] for start in range(16, end, 4))}


def _check_size(width: int, height: int, max_pixels: int) -> None:
    megapixels, limit = width * height / 1e6, max_pixels / 1e6
    if width * height > max_pixels:
        raise ImageError(
            f"the picture is {width}x{height} ({megapixels:.1f} MP), the limit is {limit:g} MP: downscale it"
        )
    if min(width, height) < MIN_SIDE_PX:
        raise ImageError(f"the picture is {width}x{height}, the least is {MIN_SIDE_PX} px a side: give a larger one")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"the picture is {width}x{height}, the longest shape is {MAX_ASPECT}:1: crop it")


_EXIF_TAGS = (ExifTags.Base.Orientation, ExifTags.Base.FocalLength, ExifTags.Base.FocalLengthIn35mmFilm)


def _read_exif(image: Image.Image) -> dict[int, object]:
    """The tags that count, of the picture and of its EXIF block; those that cannot be read are missing."""
    tags: dict[int, object] = {}
    try:
        exif = image.getexif()
        tags |= {tag: exif[tag] for tag in _EXIF_TAGS if tag in exif}
        block = exif.get_ifd(ExifTags.IFD.Exif)
        tags |= {tag: block[tag] for tag in _EXIF_TAGS if tag in block}
    except DECODER_ERRORS as error:
        _LOG.warning("the picture's EXIF block is broken and was ignored: %s", error)
    return tags


_ORIENTATIONS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What an EXIF orientation asks for; any other value counts as upright."""


def _to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Copies RGB pixels out of Pillow's four bytes a pixel, in strips: `np.array` would copy them three times."""
    width, height = image.size
    rgb = np.empty((height, width, 3), dtype=np.uint8)
    num_rows = max(1, _STRIP_PX // width)
    for top in range(0, height, num_rows):
        rgb[top : top + num_rows] = np.asarray(image.crop((0, top, width, min(top + num_rows, height))))
    return rgb


def _focal_length(
    exif: dict[int, object], options: PredictOptions, *, width: int, height: int
) -> tuple[float, FocalLengthSource]:
    """Focal length in pixels of the upright picture, and where it came from."""
    if options.focal_length_px is not None:
        return options.focal_length_px, "caller"
    source: FocalLengthSource
    equivalent_mm = _number(exif.get(ExifTags.Base.FocalLengthIn35mmFilm))
    real_mm = _number(exif.get(ExifTags.Base.FocalLength))
    real_mm *= _PHONE_CROP_FACTOR if real_mm < _PHONE_FOCAL_LIMIT_MM else 1.0
    if options.focal_length_mm is not None:
        focal_length_mm, source = options.focal_length_mm, "caller"
    elif _is_plausible(equivalent_mm):
        focal_length_mm, source = equivalent_mm, "exif_35mm"
    elif _is_plausible(real_mm):
        focal_length_mm, source = real_mm, "exif"
    else:
        focal_length_mm, source = DEFAULT_FOCAL_LENGTH_MM, "default"
    return focal_length_px_from_mm(focal_length_mm, width=width, height=height), source


def _number(value: object) -> float:
    """An EXIF number; NaN for what is not one: EXIF holds anything."""
    # Pillow's rationals are NaN themselves where the denominator is zero.
    return float(value) if isinstance(value, numbers.Real) else math.nan


def _is_plausible(focal_length_mm: float) -> bool:
    low, high = FOCAL_LENGTH_MM_RANGE
    return low <= focal_length_mm <= high

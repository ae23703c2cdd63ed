"""Decoding images: turns a file's bytes, a Pillow image or an array into upright sRGB pixels and a camera."""

from __future__ import annotations

import io
import logging
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

from sharp_cog.config.options import PredictOptions
from sharp_cog.errors import ImageError
from sharp_cog.geometry.camera import Camera
from sharp_cog.imaging import focal_length
from sharp_cog.imaging.limits import MeteredFile, check_jpeg, prepare_to_load
from sharp_cog.imaging.pixels import DECODER_ERRORS, to_srgb
from sharp_cog.text import reason_of

_LOG = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WebP", "TIFF", "BMP", "GIF", "HEIC", "AVIF")
"""Names of the formats that can be decoded."""

SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"),
        *(".heic", ".heif", ".hif", ".avif"),
    }
)
"""Suffixes of the files in a folder that are taken for images. A file that is named itself may have any suffix."""

DEFAULT_MAX_PIXELS = 100_000_000
"""Maximum number of pixels of an image, unless the caller sets another one."""

MIN_SIDE_PX = 32
"""Least width and height in pixels."""

MAX_ASPECT = 10
"""Largest ratio of the longer side to the shorter one."""

# Only these plugins may see the bytes, selected by the first bytes of a file. They are called directly, because
# `Image.open` would try every plugin that any package has registered, and would warn about or refuse large images by a
# limit that is global to the process, while the limit that counts here is `max_pixels`.
_PLUGINS: tuple[tuple[bytes, Callable[[io.BytesIO], ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),  # This plugin also reads the first frame of a multi-picture JPEG.
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

# TIFF tags, and the value by which a camera raw says that its first image is a small preview.
_NEW_SUBFILE_TYPE, _REDUCED, _DNG_VERSION = 254, 1, 50706

_STRIP_PX = 2**20
"""Number of pixels that are copied out of Pillow's memory at once."""

_ORIENTATIONS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Operation that makes an image of each EXIF orientation upright; any other value counts as upright."""

_EXIF_TAGS = (ExifTags.Base.Orientation, *focal_length.EXIF_TAGS)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceImage:
    """A decoded image.

    Attributes:
        rgb: (height, width, 3) uint8, sRGB, upright, contiguous.
        camera: Size of the image, its focal length and the source of that.
        image_format: Format of the bytes, such as `JPEG`.
        orientation: Operation that made the stored image upright, as EXIF asked for; None if it was upright already. A
            depth map in the sensor's orientation needs the same operation.
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
    """Decode an image file, whose format is recognised by its content.

    Args:
        image_bytes: Content of a JPEG, PNG, WebP, TIFF, BMP, GIF (first frame), HEIC or AVIF.
        options: Options that may name the focal length; None leaves it to EXIF, or else to the default of 30 mm.
        max_pixels: Maximum number of pixels; larger images are refused before they are decoded.

    Raises:
        ImageError: The bytes are not an image, or it is broken, too large, too small or too long.
    """
    if not image_bytes:
        raise ImageError("the image has zero bytes: give the file's content")
    with _translate_errors():
        image, is_upright = _open(image_bytes, max_pixels)
        image_format, exif = image.format or "HEIC", _read_exif(image)
        image = to_srgb(image)  # Nothing else holds the pixels from before, so that their memory is free from here on.
        rgb, orientation = _upright_pixels(image, {} if is_upright else exif)
    return _source_image(rgb, exif, options, image_format=image_format, orientation=orientation)


def from_pil(
    image: Image.Image, options: PredictOptions | None = None, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> SourceImage:
    """Take an image that Pillow has opened, with its EXIF and colour profile.

    Args:
        image: The image, loaded or not.
        options: Options that may name the focal length, as for `decode`.
        max_pixels: Maximum number of pixels.

    Raises:
        ImageError: The image is broken, too large, too small or too long.
    """
    with _translate_errors():
        _check_size(*image.size, max_pixels)
        _check_kind(image)
        exif = _read_exif(image)
        rgb, orientation = _upright_pixels(to_srgb(image), exif)
    return _source_image(rgb, exif, options, image_format=image.format or "PIL", orientation=orientation)


def from_array(
    rgb: NDArray[Any], options: PredictOptions | None = None, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> SourceImage:
    """Take upright pixels.

    Args:
        rgb: (height, width, 3) uint8, sRGB.
        options: Options that may name the focal length; None takes the default of 30 mm.
        max_pixels: Maximum number of pixels.

    Raises:
        TypeError: The array has another shape or type.
        ImageError: The image is too large, too small or too long.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise TypeError(
            f"image is a numpy array of shape {rgb.shape} and type {rgb.dtype}: give (height, width, 3) uint8 in sRGB"
        )
    _check_size(rgb.shape[1], rgb.shape[0], max_pixels)
    # A copy, since torch warns about read-only arrays, and the caller may change the array while the request is queued.
    return _source_image(np.array(rgb, order="C"), {}, options, image_format="array", orientation=None)


def _upright_pixels(image: Image.Image, exif: dict[int, object]) -> tuple[NDArray[np.uint8], Image.Transpose | None]:
    """Return (height, width, 3) pixels of an RGB image, and the operation that made them upright."""
    orientation = _ORIENTATIONS.get(exif.get(ExifTags.Base.Orientation))
    return _to_array(image if orientation is None else image.transpose(orientation)), orientation


def _source_image(
    rgb: NDArray[np.uint8],
    exif: dict[int, object],
    options: PredictOptions | None,
    *,
    image_format: str,
    orientation: Image.Transpose | None,
) -> SourceImage:
    height, width = rgb.shape[:2]
    focal_length_px, source = focal_length.choose_focal_length(
        exif, options or PredictOptions(), width=width, height=height
    )
    camera = Camera(width=width, height=height, focal_length_px=focal_length_px, focal_length_source=source)
    return SourceImage(rgb=rgb, camera=camera, image_format=image_format, orientation=orientation)


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Translate the exceptions of decoders to ImageError."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # The plugins of WebP and GIF check Pillow's global limit themselves. It lies above `max_pixels` by default.
        raise ImageError(f"the image is too large for Pillow to decode ({reason_of(error)}): downscale it") from error
    except DECODER_ERRORS as error:
        raise ImageError(f"the image is broken or truncated ({reason_of(error)}): export or send it again") from error


def _open(image_bytes: bytes, max_pixels: int) -> tuple[Image.Image, bool]:
    """Open and decode an image, and return whether it is upright already, so that EXIF no longer counts."""
    image: Image.Image
    file = MeteredFile(image_bytes)
    brands = _brands(image_bytes)
    if brands & _HEIF_BRANDS and not brands & _AVIF_BRANDS:
        heif = pillow_heif.open_heif(file, convert_hdr_to_8bit=True)
        _check_size(heif.size[0], heif.size[1], max_pixels)
        # libheif has applied the file's own transformations. HEIF's standard ranks these above EXIF's orientation, and
        # phones write both: applying EXIF as well would rotate the image twice.
        image = heif.to_pillow()
        _check_size(*image.size, max_pixels)  # The file's transformations may have cropped it.
        return image, True
    plugin: Callable[[io.BytesIO], ImageFile.ImageFile] | None = AvifImagePlugin.AvifImageFile
    if not brands & _AVIF_BRANDS:
        plugin = next((plugin for magic, plugin in _PLUGINS if image_bytes.startswith(magic)), None)
    if plugin is None:
        raise ImageError(f"the bytes are not an image: give one of {', '.join(FORMATS)}")
    _check_canvas(image_bytes, max_pixels)
    if plugin is JpegImagePlugin.JpegImageFile:
        check_jpeg(image_bytes)
    image = plugin(file)
    _check_size(*image.size, max_pixels)
    _check_kind(image)
    prepare_to_load(image)
    image.load()
    return image, False


def _check_canvas(image_bytes: bytes, max_pixels: int) -> None:
    """Check the size in the header of GIF and WebP, whose plugins allocate memory for all pixels on opening."""
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
    if width * height > max_pixels:  # Every other error is left to the check of the opened image.
        _check_size(width, height, max_pixels)


def _check_kind(image: Image.Image) -> None:
    """Refuse images that can be decoded but do not show the photograph as taken: previews of raws, and floats."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    if tags.get(_NEW_SUBFILE_TYPE) == _REDUCED or _DNG_VERSION in tags:
        raise ImageError("the image is a camera raw, in which only a preview can be read: export it as JPEG or TIFF")
    if image.mode == "F":
        raise ImageError("the image holds floats, whose white is unknown: export it with 8 or 16 bits a channel")


def _brands(image_bytes: bytes) -> set[bytes]:
    """Return the major and compatible brands of an ISO base media file (HEIC, AVIF); empty for other files."""
    if image_bytes[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(image_bytes[:4], "big"), 256)
    return {image_bytes[8:12], *(image_bytes[start : start + 4] for start in range(16, end, 4))}


def _check_size(width: int, height: int, max_pixels: int) -> None:
    megapixels, limit = width * height / 1e6, max_pixels / 1e6
    if width * height > max_pixels:
        raise ImageError(
            f"the image is {width}x{height} ({megapixels:.1f} MP), the limit is {limit:g} MP: downscale it"
        )
    if min(width, height) < MIN_SIDE_PX:
        raise ImageError(f"the image is {width}x{height}, the least is {MIN_SIDE_PX} px a side: give a larger one")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"the image is {width}x{height}, the longest shape is {MAX_ASPECT}:1: crop it")


def _read_exif(image: Image.Image) -> dict[int, object]:
    """Return orientation and focal lengths from EXIF; tags that cannot be read are left out."""
    tags: dict[int, object] = {}
    try:
        exif = image.getexif()
        tags |= {tag: exif[tag] for tag in _EXIF_TAGS if tag in exif}
        block = exif.get_ifd(ExifTags.IFD.Exif)
        tags |= {tag: block[tag] for tag in _EXIF_TAGS if tag in block}
    except DECODER_ERRORS as error:
        _LOG.warning("the image's EXIF block is broken and was ignored: %s", error)
    return tags


def _to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Copy RGB pixels out of Pillow's memory, which has four bytes a pixel.

    The copy is made in strips. `np.array` would copy the whole image three times.
    """
    width, height = image.size
    rgb = np.empty((height, width, 3), dtype=np.uint8)
    num_rows = max(1, _STRIP_PX // width)
    for top in range(0, height, num_rows):
        rgb[top : top + num_rows] = np.asarray(image.crop((0, top, width, min(top + num_rows, height))))
    return rgb

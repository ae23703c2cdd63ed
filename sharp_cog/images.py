"""Bytes of a photograph in, upright sRGB pixels and a camera out."""

from __future__ import annotations

import io
import logging
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageCms,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from sharp_cog.camera import DEFAULT_FOCAL_LENGTH_MM, Camera, FocalLengthSource, focal_length_px_from_mm
from sharp_cog.errors import ImageError
from sharp_cog.options import FOCAL_LENGTH_MM_RANGE, PredictOptions

_LOG = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WebP", "TIFF", "BMP", "GIF", "HEIC", "AVIF")
DEFAULT_MAX_PIXELS = 100_000_000
MIN_SIDE_PX = 32
MAX_ASPECT = 10

# The only plugins that may see the bytes; importing them is what makes Pillow know them.
_PILLOW_FORMATS = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        TiffImagePlugin.TiffImageFile,
        BmpImagePlugin.BmpImageFile,
        GifImagePlugin.GifImageFile,
        AvifImagePlugin.AvifImageFile,
    )
)
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}
_PHONE_FOCAL_LIMIT_MM, _PHONE_CROP_FACTOR = 10.0, 8.4
"""A focal length under 10 mm is taken for a phone's sensor, as Apple's code does."""

# What the decoders raise on broken bytes: Pillow documents the first two, fuzzing found the others.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceImage:
    """A decoded photograph.

    Attributes:
        rgb: (height, width, 3) uint8, sRGB, upright, contiguous.
        camera: Its size, its focal length and where that came from.
        image_format: The format that the bytes were in, such as `JPEG`.
    """

    rgb: NDArray[np.uint8]
    camera: Camera
    image_format: str

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
    with _translated():
        image, is_upright = _open(image_bytes, max_pixels)
        exif = _read_exif(image)
        rgb = np.asarray(_to_srgb(image))
    if not is_upright:
        rgb = _turned_upright(rgb, exif.get(ExifTags.Base.Orientation))
    height, width = rgb.shape[:2]
    focal_length_px, source = _focal_length(exif, options or PredictOptions(), width=width, height=height)
    camera = Camera(width=width, height=height, focal_length_px=focal_length_px, focal_length_source=source)
    return SourceImage(rgb=np.require(rgb, requirements=["C", "W"]), camera=camera, image_format=image.format or "HEIC")


@contextmanager
def _translated() -> Iterator[None]:
    """Turns what a decoder raises into an ImageError: the one boundary to foreign exceptions."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ImageError(f"the picture is too large to open ({error}): downscale it") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"the bytes are not a picture: give one of {', '.join(FORMATS)}") from error
    except _DECODER_ERRORS as error:
        raise ImageError(f"the picture is broken or truncated ({error}): export or send it again") from error


def _open(image_bytes: bytes, max_pixels: int) -> tuple[Image.Image, bool]:
    """Opens and decodes; says whether the picture is upright, or EXIF still has to turn it."""
    file = io.BytesIO(image_bytes)
    brands = _brands(image_bytes)
    if brands & _HEIF_BRANDS and not brands & _AVIF_BRANDS:
        heif = pillow_heif.open_heif(file, convert_hdr_to_8bit=True)
        _check_size(heif.size[0], heif.size[1], max_pixels)
        # libheif has turned it by the file's own transformations, which by its standard outrank EXIF.
        return heif.to_pillow(), True
    image = Image.open(file, formats=_PILLOW_FORMATS)
    _check_size(*image.size, max_pixels)
    image.load()
    return image, False


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


def _read_exif(image: Image.Image) -> dict[int, object]:
    """EXIF tags of the picture and of its EXIF block; empty where they cannot be read, since the pixels can."""
    try:
        exif = image.getexif()
        return {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}
    except _DECODER_ERRORS as error:
        _LOG.warning("the picture's EXIF block is broken and was ignored: %s", error)
        return {}


def _turned_upright(rgb: NDArray[np.uint8], orientation: object) -> NDArray[np.uint8]:
    """Applies an EXIF orientation, 1 to 8; anything else counts as 1."""
    # Each is a transposition, or none, and then flips of the axes.
    if orientation in (5, 6, 7, 8):
        rgb = rgb.transpose(1, 0, 2)
    flips_rows, flips_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return rgb[:: -1 if flips_rows else 1, :: -1 if flips_columns else 1]


def _focal_length(
    exif: dict[int, object], options: PredictOptions, *, width: int, height: int
) -> tuple[float, FocalLengthSource]:
    """Focal length in pixels of the upright picture, and where it came from."""
    if options.focal_length_px is not None:
        return options.focal_length_px, "caller"
    source: FocalLengthSource
    equivalent_mm = _positive_number(exif.get(ExifTags.Base.FocalLengthIn35mmFilm))
    real_mm = _positive_number(exif.get(ExifTags.Base.FocalLength))
    if options.focal_length_mm is not None:
        focal_length_mm, source = options.focal_length_mm, "caller"
    elif equivalent_mm >= 1:
        focal_length_mm, source = equivalent_mm, "exif_35mm"
    elif real_mm > 0:
        is_phone = real_mm < _PHONE_FOCAL_LIMIT_MM
        focal_length_mm, source = real_mm * (_PHONE_CROP_FACTOR if is_phone else 1.0), "exif"
    else:
        focal_length_mm, source = DEFAULT_FOCAL_LENGTH_MM, "default"
    return focal_length_px_from_mm(focal_length_mm, width=width, height=height), source


def _positive_number(value: object) -> float:
    """An EXIF number up to the longest lens anybody owns; 0 for what is not one: EXIF holds anything."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return 0.0
    return number if math.isfinite(number) and 0 < number <= FOCAL_LENGTH_MM_RANGE[1] else 0.0


def _to_srgb(image: Image.Image) -> Image.Image:
    """Any colour mode to 8-bit sRGB: transparency over white, profiles applied."""
    profile = _read_profile(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _to_8_bit(image)
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(layers, mask=layers.getchannel("A"))
    elif image.mode in ("1", "P", "YCbCr", "HSV", "RGBX"):
        image = image.convert("RGB")
    if image.mode == "LAB":
        return _apply_profile(image, ImageCms.createProfile("LAB"))
    if profile is not None:
        image = _apply_profile(image, profile.profile)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits: 0 is black and 65535 is white."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f"the picture holds {values.dtype} values from {values.min()} to {values.max()}, whose white is unknown: "
            "export it with 8 or 16 bits a channel"
        )
    return Image.fromarray(np.rint(values / 257.0).astype(np.uint8))


_PROFILE_SPACES = {"RGB": "RGB ", "CMYK": "CMYK", "L": "GRAY"}


def _read_profile(image: Image.Image) -> ImageCms.ImageCmsProfile | None:
    """The embedded colour profile, unless it is sRGB's, absent, or garbage."""
    data = image.info.get("icc_profile")
    if not data:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        is_srgb = ImageCms.getProfileDescription(profile).startswith("sRGB")
    except (ImageCms.PyCMSError, *_DECODER_ERRORS) as error:
        _LOG.warning("the picture's colour profile is broken and was ignored: %s", error)
        return None
    return None if is_srgb else profile


def _apply_profile(image: Image.Image, profile: object) -> Image.Image:
    """Converts to sRGB by a profile; leaves the picture as it is where the profile is for another kind of pixel."""
    space = getattr(profile, "xcolor_space", None)
    if image.mode == "L" and space == "RGB ":
        image = image.convert("RGB")
    if image.mode in _PROFILE_SPACES and space != _PROFILE_SPACES[image.mode]:
        _LOG.warning("the picture's colour profile is for %s pixels, not for %s, and was ignored", space, image.mode)
        return image
    try:
        converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")  # type: ignore[arg-type]
    except ImageCms.PyCMSError as error:
        _LOG.warning("the picture's colour profile cannot be applied and was ignored: %s", error)
        return image
    return image if converted is None else converted

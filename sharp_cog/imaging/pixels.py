"""Converting pixels of any colour mode to 8-bit sRGB."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from typing import cast

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

from sharp_cog.errors import ImageError

_LOG = logging.getLogger(__name__)

# Exceptions of decoders on broken bytes. Pillow documents the first two, fuzzing found the others.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    UserWarning,  # Pillow warns of odd EXIF blocks, and a program may turn warnings into errors.
)
"""Exceptions that decoders raise on broken bytes."""

# TIFF tags, and the value of the second by which 0 is white.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0

_PROFILE_SPACES = {"RGB": "RGB ", "CMYK": "CMYK", "L": "GRAY"}
"""Colour space that an ICC profile must name to be applied to pixels of each mode."""

_SRGB_NAMES = ("sRGB", "sRGB built-in", "sRGB IEC61966-2.1", "sRGB IEC61966-2-1")
"""Names of profiles that need not be applied, since they are sRGB itself."""


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert any colour mode to 8-bit sRGB; lay transparent pixels over white, and apply the embedded profile.

    Raises:
        ImageError: The white of the pixels is unknown.
    """
    profile = _read_profile(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        image = _to_8_bit(image)
    if image.has_transparency_data:
        opaque_mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
        layers = image.convert(opaque_mode + "A")
        image = Image.new(opaque_mode, image.size, "white")
        image.paste(layers, mask=layers.getchannel("A"))
    elif image.mode in ("P", "YCbCr", "HSV", "RGBX"):
        image = image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    if image.mode == "LAB":
        return _apply_profile(image, ImageCms.createProfile("LAB"))
    if profile is not None:
        image = _apply_profile(image, profile.profile)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Convert grey of more than 8 bits; black is 0 and white 65535, or 4095 in a TIFF of 12 bits."""
    low, high = cast("tuple[int, int]", image.getextrema()) if image.mode == "I" else (0, 65535)
    if low < 0 or high > 65535:
        raise ImageError(
            f"the image holds values from {low} to {high}, whose white is unknown: export it with 8 or 16 bits a "
            "channel"
        )
    values = np.asarray(image)
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    white = 4095 if tags.get(_BITS_PER_SAMPLE) == (12,) else 65535
    # Half of the divisor rounds to the nearest value. There are no ties, since the divisor is odd.
    grey = ((values.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts such images itself only with 8 bits.
        grey = 255 - grey
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _read_profile(image: Image.Image) -> ImageCms.ImageCmsProfile | None:
    """Return the embedded colour profile, or None if it is absent, broken, or sRGB."""
    data = image.info.get("icc_profile")
    if not data:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        # The whole name counts: there are linear profiles whose names begin with "sRGB".
        is_srgb = ImageCms.getProfileDescription(profile).strip() in _SRGB_NAMES
    except (ImageCms.PyCMSError, *DECODER_ERRORS) as error:
        _LOG.warning("the image's colour profile is broken and was ignored: %s", error)
        return None
    return None if is_srgb else profile


def _apply_profile(image: Image.Image, profile: object) -> Image.Image:
    """Convert to sRGB by a profile; return the image as it is if the profile is for another kind of pixels."""
    space = getattr(profile, "xcolor_space", None)
    if image.mode == "L" and space == "RGB ":
        image = image.convert("RGB")
    if image.mode in _PROFILE_SPACES and space != _PROFILE_SPACES[image.mode]:
        _LOG.warning("the image's colour profile is for %s pixels, not for %s, and was ignored", space, image.mode)
        return image
    try:
        converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")  # type: ignore[arg-type]
    except ImageCms.PyCMSError as error:
        _LOG.warning("the image's colour profile cannot be applied and was ignored: %s", error)
        return image
    return image if converted is None else converted

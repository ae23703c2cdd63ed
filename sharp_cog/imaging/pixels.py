"""Converting pixels of any colour mode to 8-bit sRGB."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, TiffImagePlugin

from sharp_cog.errors import ImageError
from sharp_cog.imaging.codings import SRGB_PRIMARIES, Coding, matrix_to_srgb

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

_STRIP_PX = 2**20
"""Number of pixels that are converted at once."""

_SRGB_GAMMA = 1 / 2.2
_MAX_GAMMA_DIFFERENCE = 0.03


# TIFF tags, and the value of the second by which 0 is white.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0

_PROFILE_SPACES = {"RGB": "RGB ", "CMYK": "CMYK", "L": "GRAY"}
"""Colour space that an ICC profile must name to be applied to pixels of each mode."""

_SRGB_NAMES = ("sRGB", "sRGB built-in", "sRGB IEC61966-2.1", "sRGB IEC61966-2-1")
"""Names of profiles that need not be applied, since they are sRGB itself."""


class ToSrgb:
    """Conversion of an image, or of any strip of it, to 8-bit sRGB.

    Transparent pixels are laid over white, and the embedded profile is applied.
    """

    def __init__(self, image: Image.Image, coding: Coding | None = None) -> None:
        """Prepare the conversion.

        Args:
            image: The whole image.
            coding: Meaning of the pixels by the file's own numbers. It counts without a profile, and for HDR, which
                profiles cannot describe; None leaves it to a PNG's chunks gAMA and cHRM.

        Raises:
            ImageError: The white of the pixels is unknown.
        """
        profile = _read_profile(image)
        has_profile = bool(image.info.get("icc_profile"))
        if coding is None or (has_profile and not coding.is_hdr):
            coding = None if has_profile else _read_png_coding(image)
        self._coding = None if coding is None or coding.is_srgb else coding
        self._profile = None if profile is None or coding is not None else profile.profile
        self._transforms: dict[str, ImageCms.ImageCmsTransform | None] = {}
        self._peak = _find_peak(image) if self._coding is not None and self._coding.is_hdr else 1.0
        if image.mode == "I":
            low, high = cast("tuple[int, int]", image.getextrema())
            if low < 0 or high > 65535:
                raise ImageError(
                    f"the image holds values from {low} to {high}, whose white is unknown: export it with 8 or 16 bits "
                    "a channel"
                )
        tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
        self._white = 4095 if tags.get(_BITS_PER_SAMPLE) == (12,) else 65535
        # Pillow inverts such images itself only with 8 bits.
        self._is_inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO

    def __call__(self, image: Image.Image) -> Image.Image:
        """Convert the image, or a strip that was cut out of it."""
        if image.mode.startswith("I;16") or image.mode == "I":
            image = self._to_8_bit(image)
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
            return self._apply_profile(image, ImageCms.createProfile("LAB"))
        if self._profile is not None:
            image = self._apply_profile(image, self._profile)
        image = image if image.mode == "RGB" else image.convert("RGB")
        if self._coding is None:
            return image
        values = np.asarray(image).astype(np.float32) / np.float32(255)
        return Image.fromarray(self._coding.to_srgb(values, peak=self._peak))

    def _to_8_bit(self, image: Image.Image) -> Image.Image:
        """Convert grey of more than 8 bits; black is 0 and white 65535, or 4095 in a TIFF of 12 bits."""
        values = np.asarray(image)
        # Half of the divisor rounds to the nearest value. There are no ties, since the divisor is odd.
        grey = ((values.astype(np.uint32) * 255 + self._white // 2) // self._white).astype(np.uint8)
        if self._is_inverted:
            grey = 255 - grey
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            grey[values == transparent] = 255
        return Image.fromarray(grey)

    def _apply_profile(self, image: Image.Image, profile: object) -> Image.Image:
        """Convert to sRGB by a profile; return the image as it is if the profile is for another kind of pixels."""
        if image.mode == "L" and getattr(profile, "xcolor_space", None) == "RGB ":
            image = image.convert("RGB")
        if image.mode not in self._transforms:
            self._transforms[image.mode] = _build_transform(image.mode, profile)
        transform = self._transforms[image.mode]
        return image if transform is None else transform.apply(image)


def to_srgb(image: Image.Image, coding: Coding | None = None) -> Image.Image:
    """Convert a whole image to 8-bit sRGB; see `ToSrgb`."""
    return ToSrgb(image, coding)(image)


def convert_16_bits(values: NDArray[np.uint16], coding: Coding, *, white: int) -> Image.Image:
    """Convert HDR of more than 8 bits to an 8-bit image.

    Args:
        values: (height, width, 3 or 4), in which a fourth channel is opacity.
        coding: Meaning of the values.
        white: Largest value that the file can hold.

    Returns:
        An image of mode RGB or RGBA, in sRGB.
    """
    height, width, num_channels = values.shape
    result = np.empty(values.shape, np.uint8)
    peak = min(1.0, float(values[..., :3].max()) / white)
    num_rows = max(1, _STRIP_PX // width)
    for top in range(0, height, num_rows):
        strip = np.minimum(values[top : top + num_rows].astype(np.float32) / white, 1)
        result[top : top + num_rows, :, :3] = coding.to_srgb(strip[..., :3], peak=peak)
        if num_channels == 4:
            result[top : top + num_rows, :, 3] = np.rint(strip[..., 3] * 255)
    return Image.fromarray(result)


def _find_peak(image: Image.Image) -> float:
    """Return the largest value of the colours, of 1."""
    image = image if image.mode == "RGB" else image.convert("RGB")
    return max(high for _, high in cast("tuple[tuple[int, int], ...]", image.getextrema())) / 255


def _read_png_coding(image: Image.Image) -> Coding | None:
    """Return the coding by the chunks gAMA and cHRM of a PNG; None if it has none, or is sRGB by them.

    The chunk sRGB ranks above both (PNG specification, third edition, 4.3).
    """
    if "srgb" in image.info or not ("gamma" in image.info or "chromaticity" in image.info):
        return None
    gamma, primaries = image.info.get("gamma", _SRGB_GAMMA), image.info.get("chromaticity", SRGB_PRIMARIES)
    try:
        is_valid = 0.1 <= gamma <= 10 and len(primaries) == 8 and all(0 < each < 1 for each in primaries)
        # A gamma of 1/2.2 stands for sRGB's own curve, which the chunk cannot describe.
        is_srgb_curve = abs(gamma / _SRGB_GAMMA - 1) < _MAX_GAMMA_DIFFERENCE
        coding = Coding(primaries=tuple(primaries), power=None if is_srgb_curve else 1 / gamma)
        if not is_valid or not np.isfinite(matrix_to_srgb(coding.primaries)).all():
            raise ValueError(f"gamma {gamma}, chromaticities {primaries}")
    except (*DECODER_ERRORS, np.linalg.LinAlgError) as error:
        _LOG.warning("the image's chunks gAMA and cHRM are broken and were ignored: %s", error)
        return None
    return None if coding.is_srgb else coding


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


def _build_transform(mode: str, profile: object) -> ImageCms.ImageCmsTransform | None:
    """Return the conversion from a profile to sRGB; None if the profile is for another kind of pixels."""
    space = getattr(profile, "xcolor_space", None)
    if mode in _PROFILE_SPACES and space != _PROFILE_SPACES[mode]:
        _LOG.warning("the image's colour profile is for %s pixels, not for %s, and was ignored", space, mode)
        return None
    try:
        return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")  # type: ignore[arg-type]
    except ImageCms.PyCMSError as error:
        _LOG.warning("the image's colour profile cannot be applied and was ignored: %s", error)
        return None

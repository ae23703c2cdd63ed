"""Choosing an image's focal length: the caller's word first, then EXIF, then SHARP's default."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping

from PIL import ExifTags

from sharp_cog.config.options import FOCAL_LENGTH_MM_RANGE, PredictOptions
from sharp_cog.geometry.camera import DEFAULT_FOCAL_LENGTH_MM, FocalLengthSource, focal_length_px_from_mm

EXIF_TAGS = (ExifTags.Base.FocalLength, ExifTags.Base.FocalLengthIn35mmFilm)
"""EXIF tags that hold a focal length."""

_PHONE_FOCAL_LIMIT_MM = 10.0
"""Focal length below which the sensor is taken for a phone's, as in Apple's code."""

_PHONE_CROP_FACTOR = 8.4
"""Ratio of a 35 mm-equivalent focal length to the real one of a phone, as in Apple's code."""


def choose_focal_length(
    exif: Mapping[int, object], options: PredictOptions, *, width: int, height: int
) -> tuple[float, FocalLengthSource]:
    """Choose the focal length in pixels.

    Args:
        exif: EXIF tags; their values may be anything, since files may hold anything.
        options: Options that may name a focal length.
        width: Width of the upright image in pixels.
        height: Height of the upright image in pixels.

    Returns:
        The focal length in pixels, and its source.
    """
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
    """Return an EXIF value as a number, or NaN for text, tuples and a missing tag."""
    # Pillow's rational numbers are NaN themselves if the denominator is zero.
    return float(value) if isinstance(value, numbers.Real) else math.nan


def _is_plausible(focal_length_mm: float) -> bool:
    low, high = FOCAL_LENGTH_MM_RANGE
    return low <= focal_length_mm <= high

"""Choosing an image's focal length: the caller's word first, then the file's own calibration, EXIF, SHARP's default."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import ExifTags

from sharp_cog.config.options import FOCAL_LENGTH_MM_RANGE, PredictOptions
from sharp_cog.geometry.camera import (
    DEFAULT_FOCAL_LENGTH_MM,
    FocalLengthSource,
    focal_length_px_from_fov,
    focal_length_px_from_mm,
)
from sharp_cog.imaging.sensors import find_sensor, is_phone, match_sensor

_Tag = ExifTags.Base

EXIF_TAGS = (
    *(_Tag.Make, _Tag.Model, _Tag.FocalLength, _Tag.FocalLengthIn35mmFilm, _Tag.DigitalZoomRatio),
    *(_Tag.ExifImageWidth, _Tag.ExifImageHeight),
    *(_Tag.FocalPlaneXResolution, _Tag.FocalPlaneYResolution, _Tag.FocalPlaneResolutionUnit),
)
"""EXIF tags from which a focal length follows."""

MIN_EXIF_MM = 6.0
"""Least 35 mm-equivalent focal length that is believed: the widest lenses have 8 to 10 mm, and some cameras write 1."""

_PHONE_CROP_FACTOR = 8.4
"""Ratio of a 35 mm-equivalent focal length to the real one of a phone, as in Apple's code."""

_MAX_PHONE_MM = 5.0
"""Real focal length above which a phone's sensor is larger than the factor says, or its lens is a telephoto lens."""

_MAX_PIXEL_PHONE_CROP = 7.0
"""Largest crop factor of a Pixel phone's sensors."""

_INCH = 2
_UNITS_MM: dict[float, float] = {_INCH: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}
"""Length of the units of `FocalPlaneResolutionUnit`; EXIF knows the first two, cameras write the others too."""

_MAX_ASPECT_DIFFERENCE = 0.02
_MAX_ZOOM = 100.0


@dataclass(frozen=True, kw_only=True, slots=True)
class FocalLength:
    """A focal length.

    Attributes:
        px: Length in pixels.
        source: Source of the length.
        reason: Phrase that says how it was concluded; empty for one that was given or assumed.
    """

    px: float
    source: FocalLengthSource
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Camera:
    """Facts of EXIF about the camera; a number is NaN and a text empty where the file has none that can be used."""

    make: str
    model: str
    real_mm: float
    equivalent_mm: float
    zoom: float
    width_mm: float
    height_mm: float


def choose_focal_length(
    exif: Mapping[int, object],
    options: PredictOptions,
    *,
    width: int,
    height: int,
    intrinsic_px: float | None = None,
) -> FocalLength:
    """Choose the focal length.

    Args:
        exif: EXIF tags; their values may be anything, since files may hold anything.
        options: Options that may name a focal length.
        width: Width of the upright image in pixels.
        height: Height of the upright image in pixels.
        intrinsic_px: Focal length in pixels by the camera matrix of a HEIC or AVIF; None if there is none.
    """
    size = {"width": width, "height": height}
    if options.focal_length_px is not None:
        return FocalLength(px=options.focal_length_px, source="caller")
    if options.focal_length_mm is not None:
        return FocalLength(px=focal_length_px_from_mm(options.focal_length_mm, **size), source="caller")
    if options.fov is not None:
        return FocalLength(px=focal_length_px_from_fov(options.fov, width=width), source="caller")
    # A camera matrix is measured; EXIF's focal lengths are rounded, and say nothing of a crop.
    px_per_mm = focal_length_px_from_mm(1.0, **size)
    if intrinsic_px is not None and _is_plausible(intrinsic_px / px_per_mm):
        return FocalLength(px=intrinsic_px, source="intrinsics")
    camera = _read(exif, width / height)
    if _is_plausible(camera.equivalent_mm):
        return FocalLength(px=camera.equivalent_mm * _missing_zoom(camera) * px_per_mm, source="exif_35mm")
    # The real focal length says nothing without the size of the sensor.
    crop_factor, reason = _crop_factor(camera)
    equivalent_mm = camera.real_mm * crop_factor * camera.zoom
    if _is_plausible(equivalent_mm):
        return FocalLength(px=equivalent_mm * px_per_mm, source="exif", reason=reason)
    return FocalLength(px=DEFAULT_FOCAL_LENGTH_MM * px_per_mm, source="default")


def _crop_factor(camera: _Camera) -> tuple[float, str]:
    """Return the ratio of the 35 mm-equivalent to the real focal length, NaN if the sensor is not known, and a reason.

    The sensor follows from the camera's make and model, or else from the resolution in the focal plane, if the size
    that follows is that of a sensor that exists.
    """
    sensor = find_sensor(camera.make, camera.model)
    if sensor is not None:
        return sensor.crop_factor, "by the sensor that cameras of this make and model have"
    if is_phone(camera.make, camera.model):
        factor = _PHONE_CROP_FACTOR if camera.real_mm <= _MAX_PHONE_MM else math.nan
        return factor, "by the usual sensor of a phone, since that of this model is not known"
    sensor = match_sensor(camera.width_mm, camera.height_mm)
    factor = math.nan if sensor is None else sensor.crop_factor
    return factor, "by the sensor that fits EXIF's resolution in the focal plane"


def _missing_zoom(camera: _Camera) -> float:
    """Return the factor that is missing in a 35 mm tag.

    EXIF leaves open whether the tag includes the digital zoom. That of most cameras does, that of Google's Pixel phones
    does not: the ratio to the real focal length stays that of the sensor.
    """
    is_pixel = camera.make.strip("\0 ").lower() == "google"
    has_zoom = camera.equivalent_mm > camera.real_mm * _MAX_PIXEL_PHONE_CROP
    return camera.zoom if is_pixel and not has_zoom else 1.0


def _read(exif: Mapping[int, object], aspect: float) -> _Camera:
    pixels = _number(exif.get(_Tag.ExifImageWidth)), _number(exif.get(_Tag.ExifImageHeight))
    unit_mm = _UNITS_MM.get(_number(exif.get(_Tag.FocalPlaneResolutionUnit, _INCH)))
    resolutions = _number(exif.get(_Tag.FocalPlaneXResolution)), _number(exif.get(_Tag.FocalPlaneYResolution))
    width_mm = height_mm = math.nan
    if unit_mm is not None and min(*pixels, *resolutions) > 0 and _has_aspect(pixels, aspect):
        width_mm, height_mm = (count / per_unit * unit_mm for count, per_unit in zip(pixels, resolutions, strict=True))
    zoom = _number(exif.get(_Tag.DigitalZoomRatio))
    return _Camera(
        make=_text(exif.get(_Tag.Make)),
        model=_text(exif.get(_Tag.Model)),
        real_mm=_number(exif.get(_Tag.FocalLength)),
        equivalent_mm=_number(exif.get(_Tag.FocalLengthIn35mmFilm)),
        zoom=zoom if 1 <= zoom <= _MAX_ZOOM else 1.0,  # Zero says that digital zoom was not used.
        width_mm=width_mm,
        height_mm=height_mm,
    )


def _has_aspect(pixels: tuple[float, float], aspect: float) -> bool:
    """Return whether EXIF's size in pixels has the image's shape, upright or not; else the image has been cropped."""
    exif_aspect = pixels[0] / pixels[1]
    return any(abs(exif_aspect / other - 1) <= _MAX_ASPECT_DIFFERENCE for other in (aspect, 1 / aspect))


def _number(value: object) -> float:
    """Return an EXIF value as a number, or NaN for text, tuples and a missing tag."""
    # Pillow's rational numbers are NaN themselves if the denominator is zero.
    return float(value) if isinstance(value, numbers.Real) else math.nan


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _is_plausible(focal_length_mm: float) -> bool:
    return MIN_EXIF_MM <= focal_length_mm <= FOCAL_LENGTH_MM_RANGE[1]

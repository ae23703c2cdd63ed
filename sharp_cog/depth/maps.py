"""Decoding external depth maps: converts their numbers to metres, by a format that is named or evident."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sharp_cog.config.options import DEPTH_UNITS_M
from sharp_cog.depth import evidence
from sharp_cog.depth import files as depth_files
from sharp_cog.depth.evidence import Statement
from sharp_cog.depth.files import RawDepth
from sharp_cog.errors import DepthError
from sharp_cog.geometry.camera import Camera

_LOG = logging.getLogger(__name__)

Depth = NDArray[np.float32]

MAX_ASPECT_DIFFERENCE = 0.02
"""Largest relative difference between the aspects of a depth map and its image."""

MIN_DEPTH_M = 0.001
"""Nearest depth of a map."""

FAR_DEPTH_M = 10_000.0
"""Farthest depth of a map, and the depth of a sky at infinity; Depth Pro ends there too."""

RELATIVE_RANGE_M = (1.0, 10.0)
"""Depths of the values 0 and 1 in a relative map."""

INVERSE_MEDIAN_M = 3.0
"""Median depth of an inverse-relative map."""

MIN_INVERSE_SHARE = 1e-3
"""Least value of an inverse-relative map, as a fraction of its nearest values; the 0 of a sky is raised to it."""

_NEAREST_QUANTILE = 0.99
"""Quantile of disparity that stands for the nearest values, so that no single pixel decides."""

_UNIT_RANGE = (-0.1, 1.5)
"""Range of the values of a relative map from 0 to 1; resizing may have taken them beyond."""

_STRIP_PX = 1 << 22
"""Approximate number of pixels that are converted at once; copies of a whole map of 100 megapixels take gigabytes."""

_MAX_MEASURED_PX = 25_000_000
"""Maximum number of pixels from which quantiles are taken."""

_SIDEWAYS = (
    *(Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270),
    *(Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE),
)
"""Operations that swap width and height."""

# The network works in units of the nearest depth, so that a single pixel near zero would flatten the whole scene.
_FLOOR_QUANTILE = 0.001
"""Quantile of depth that stands for the nearest object in a metric map."""

_FLOOR_SHARE = 0.5
"""Fraction of the depth at `_FLOOR_QUANTILE` below which a pixel is an outlier."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthMap:
    """Depth along the optical axis of the camera of an image.

    Attributes:
        depth_m: (height, width) float32, metres, positive, NaN where unknown. The map has the aspect of its image, but
            may have another size.
        is_metric: Whether the metres are measured. Those of a relative or inverse-relative map are made up.
        taken_as: Phrase that says what the numbers were taken as and why, if nobody named their format.
        focal_length_px: Focal length in pixels of the image that the depth file gives; None if it gives none.
        origin: Phrase that says what a map is that the photograph itself carries; empty for other maps.
    """

    depth_m: Depth
    is_metric: bool = True
    taken_as: str = ""
    focal_length_px: float | None = None
    origin: str = ""

    def __post_init__(self) -> None:
        if self.depth_m.ndim != 2 or self.depth_m.dtype != np.float32:
            raise ValueError(f"depth_m is {self.depth_m.dtype} of shape {self.depth_m.shape}, expected 2-D float32")


def decode(
    depth_bytes: bytes,
    camera: Camera,
    *,
    depth_format: str = "auto",
    depth_unit: str = "auto",
    orientation: Image.Transpose | None = None,
    name: str = "",
) -> DepthMap:
    """Decode the bytes of a depth map.

    In a metric map, outliers nearer than half of the 0.1 % quantile are raised to that quantile, and logged.

    Args:
        depth_bytes: Content of a file in a format that `sharp_cog.depth.files.read` reads.
        camera: Camera of the image, whose aspect the map must have within 2 %.
        depth_format: `metric`, `relative` (0 to 1, mapped to 1 to 10 m; integers by their own range),
            `inverse-relative` (disparity-like, inverted so that the median is 3 m), or `auto`: what the file says about
            itself, else what its numbers clearly are (`sharp_cog.depth.evidence`).
        depth_unit: Unit of a metric map: a key of `DEPTH_UNITS_M`, or metres per unit as a number; `auto` takes the one
            that the file names, else millimetres for 16-bit integers and metres for floats. Any other value says that
            the map is metric.
        orientation: Operation that made the image upright. It is applied to a map that has the aspect of the image from
            before.
        name: Name of the file, perhaps with that of its folder, which may say what its numbers are.

    Raises:
        DepthError: The bytes are not a depth map, or it is broken, has no known pixel, or has another aspect; or the
            format is `auto` and cannot be known.
    """
    raw = depth_files.read(depth_bytes)
    if name:
        is_integer = raw.is_integer and evidence.unit_of_integers(raw.values) == evidence.MILLIMETRE
        stated = evidence.from_file_name(name, is_integer=is_integer)
        # Grey of 8 bits is a picture, whatever the camera in its name.
        if not raw.is_integer or is_integer or stated is None or stated.format != "metric":
            raw = replace(raw, stated=evidence.stronger(raw.stated, stated))
    return _from_raw(raw, camera, depth_format, depth_unit, orientation)


def from_array(
    values: NDArray[Any],
    camera: Camera,
    *,
    depth_format: str = "auto",
    depth_unit: str = "auto",
    orientation: Image.Transpose | None = None,
) -> DepthMap:
    """Take a depth map that is an array already.

    Args:
        values: (height, width), floats or integers.
        camera: Camera of the image, as for `decode`.
        depth_format: Meaning of the numbers, as for `decode`.
        depth_unit: Unit of a metric map, as for `decode`.
        orientation: Operation that made the image upright, as for `decode`.

    Raises:
        TypeError: The array has another shape or type.
        DepthError: The map has no known pixel, or another aspect, or its format is `auto` and cannot be known.
    """
    if values.ndim != 2 or values.dtype.kind not in "fiu" or not values.size:
        raise TypeError(
            f"depth is a numpy array of shape {values.shape} and type {values.dtype}: give (height, width) numbers"
        )
    with np.errstate(over="ignore"):  # A float64 too large for float32 becomes infinite: far.
        raw = RawDepth(values=values.astype(np.float32), is_integer=values.dtype.kind in "iu")
    return _from_raw(raw, camera, depth_format, depth_unit, orientation)


def _from_raw(
    raw: RawDepth, camera: Camera, depth_format: str, depth_unit: str, orientation: Image.Transpose | None
) -> DepthMap:
    values = _make_upright(raw.values, camera, orientation)
    height, width = values.shape
    difference = _aspect_difference(values, camera.width, camera.height)
    if difference > MAX_ASPECT_DIFFERENCE:
        raise DepthError(
            f"the depth map is {width}x{height}, the image {camera.width}x{camera.height}: "
            f"their aspects differ by {difference:.0%}, more than {MAX_ASPECT_DIFFERENCE:.0%}: crop one of them"
        )
    if not np.isfinite(values).any(where=values != 0):
        raise DepthError("the depth map has no known pixel: every value is zero, NaN or infinite")
    if depth_format == "auto" and depth_unit != "auto":
        depth_format = "metric"
    taken_as, stated = "", raw.stated
    if depth_format == "auto":
        if not np.isfinite(values).any(where=values > 0):
            raise DepthError("the depth map has no known pixel: every value is zero, negative, NaN or infinite")
        stated = evidence.decide(values, stated, is_integer=raw.is_integer)
        depth_format, taken_as = stated.format, f"{stated.format}, {stated.reason}"
    if depth_format == "metric":
        depth_m = _from_metric(values, _unit_m(values, depth_unit, stated, is_integer=raw.is_integer))
    elif depth_format == "relative":
        depth_m = _from_relative(values, is_integer=raw.is_integer)
    else:
        depth_m = _from_inverse(values)
    if np.isnan(depth_m).all():
        raise DepthError("the depth map has no known pixel: every value is zero, negative, NaN or infinite")
    focal_length_px = raw.focal_length_px
    if focal_length_px is not None:
        focal_length_px *= max(camera.width, camera.height) / max(width, height)
    return DepthMap(
        depth_m=np.clip(depth_m, np.float32(MIN_DEPTH_M), np.float32(FAR_DEPTH_M), out=depth_m),
        is_metric=depth_format == "metric",
        taken_as=taken_as,
        focal_length_px=focal_length_px,
    )


def _unit_m(values: Depth, depth_unit: str, stated: Statement | None, *, is_integer: bool) -> float:
    """Return the metres in the unit of a metric map."""
    if depth_unit != "auto":
        return DEPTH_UNITS_M[depth_unit] if depth_unit in DEPTH_UNITS_M else float(depth_unit)
    if stated is not None and stated.format == "metric" and (stated.is_certain or not is_integer):
        return stated.unit_m
    return evidence.unit_of_integers(values) if is_integer else 1.0


def known_everywhere(depth_map: DepthMap) -> DepthMap:
    """Return the map with its unknown pixels filled from the nearest known ones; log how many.

    The array of the map is filled in place, since a copy of the largest map takes 400 MB. Models without monodepth need
    this. SHARP fills unknown pixels from its monodepth.
    """
    depth_m = depth_map.depth_m
    num_unknown = sum(int(np.count_nonzero(np.isnan(depth_m[rows]))) for rows in _strips(depth_m))
    if num_unknown:
        _LOG.warning(
            "%d of %d pixels of the depth map are unknown and were filled from known ones", num_unknown, depth_m.size
        )
        _fill(depth_m)
    return depth_map


def _aspect_difference(values: Depth, width: int, height: int) -> float:
    """Return the relative difference between the aspects of a map and of an image of this size."""
    rows, columns = values.shape
    return float(abs(columns * height / (rows * width) - 1))


def _make_upright(values: Depth, camera: Camera, orientation: Image.Transpose | None) -> Depth:
    """Rotate a map that has the aspect of its image from before that was made upright."""
    if orientation not in _SIDEWAYS or camera.width == camera.height:
        return values
    difference = _aspect_difference(values, camera.height, camera.width)
    is_upright = _aspect_difference(values, camera.width, camera.height) < difference
    if is_upright or difference > MAX_ASPECT_DIFFERENCE:
        return values
    _LOG.info("the depth map has the aspect of the image before EXIF's rotation, and was rotated with it")
    return turned(values, orientation)


def turned(values: Depth, operation: Image.Transpose) -> Depth:
    """Return a map turned or mirrored as Pillow does it with an image, which would take two more copies."""
    turn = {
        Image.Transpose.FLIP_LEFT_RIGHT: lambda: values[:, ::-1],
        Image.Transpose.FLIP_TOP_BOTTOM: lambda: values[::-1],
        Image.Transpose.ROTATE_90: lambda: np.rot90(values),
        Image.Transpose.ROTATE_180: lambda: np.rot90(values, 2),
        Image.Transpose.ROTATE_270: lambda: np.rot90(values, -1),
        Image.Transpose.TRANSPOSE: lambda: values.T,
        Image.Transpose.TRANSVERSE: lambda: np.rot90(values, 2).T,
    }
    return np.ascontiguousarray(turn[operation]())


def _rows_to_measure(values: Depth) -> Depth:
    """Return the rows of a map from which quantiles are taken: all, or evenly spread ones of a huge map."""
    return values[:: -(-values.size // _MAX_MEASURED_PX)]


def _strips(depth_m: Depth) -> Iterator[slice]:
    """Yield slices of an even number of rows that cover a map, each of about `_STRIP_PX` pixels."""
    num_rows = 2 * max(1, _STRIP_PX // (2 * depth_m.shape[1]))
    for top in range(0, len(depth_m), num_rows):
        yield slice(top, top + num_rows)


def _from_metric(values: Depth, unit_m: float) -> Depth:
    """Return metres, with a sky at infinity as far as depth goes, and without outliers near zero; works in place."""
    for rows in _strips(values):
        strip = values[rows]
        if unit_m != 1:
            # Divided, since 1000 millimetres to the metre are exact in float32, and a thousandth of a metre is not.
            strip /= np.float32(1 / unit_m)
        np.minimum(strip, np.float32(FAR_DEPTH_M), out=strip)
        np.copyto(strip, np.float32(np.nan), where=~(strip > 0))
    measured = _rows_to_measure(values)
    known_m = measured[~np.isnan(measured)]
    if not len(known_m):
        return values
    floor_m = np.float32(np.quantile(known_m, _FLOOR_QUANTILE))
    num_outliers = 0
    for rows in _strips(values):
        outliers = values[rows] < _FLOOR_SHARE * floor_m
        num_outliers += int(np.count_nonzero(outliers))
        np.copyto(values[rows], floor_m, where=outliers)
    if num_outliers:
        _LOG.warning(
            "%d pixels of the depth map are outliers nearer than half of %.3g m, and were raised to it",
            num_outliers,
            floor_m,
        )
    return values


def _from_relative(values: Depth, *, is_integer: bool) -> Depth:
    """Map 0 to 1, or the range of the values if they are integers or lie elsewhere, to `RELATIVE_RANGE_M`, in place."""
    near_m, far_m = RELATIVE_RANGE_M
    known = np.isfinite(values)
    low, high = float(np.min(values, where=known, initial=np.inf)), float(np.max(values, where=known, initial=-np.inf))
    # The limits are rounded to float32 like the map. A map of exactly -0.1 would otherwise be below the limit.
    least, most = (float(limit) for limit in np.array(_UNIT_RANGE, dtype=np.float32))
    is_other = is_integer or low < least or high > most
    for rows in _strips(values):
        strip = values[rows]
        if is_other:
            strip = (strip - np.float32(low)) / np.float32(max(high - low, 1e-30))
        values[rows] = np.where(known[rows], near_m + (far_m - near_m) * np.clip(strip, 0, 1), np.float32(np.nan))
    return values


def _from_inverse(values: Depth) -> Depth:
    """Invert disparity-like values in place, with the median at `INVERSE_MEDIAN_M`, whatever their scale."""
    measured = _rows_to_measure(values)
    positive = measured[np.isfinite(measured) & (measured > 0)]
    if not len(positive):
        values[:] = np.nan
        return values
    nearest = np.quantile(positive, _NEAREST_QUANTILE)
    for rows in _strips(values):
        strip = values[rows]
        depth = nearest / np.maximum(strip, np.float32(MIN_INVERSE_SHARE) * nearest)
        values[rows] = np.where(np.isfinite(strip), depth, np.float32(np.nan))
    values *= np.float32(INVERSE_MEDIAN_M / np.nanmedian(_rows_to_measure(values)))
    return values


def _fill(depth_m: Depth) -> None:
    """Fill unknown pixels in place from a pyramid of means of the known ones, each from the finest level with a value.

    The map is halved, with odd sides padded by unknown pixels; the half is filled recursively and enlarged again, and
    unknown pixels take their values from it.
    """
    height, width = depth_m.shape
    if height == 1 and width == 1:
        return
    coarse = np.empty((-(-height // 2), -(-width // 2)), dtype=np.float32)
    for rows in _strips(depth_m):
        strip = depth_m[rows]
        padding = ((0, len(strip) % 2), (0, width % 2))
        blocks = (-(-len(strip) // 2), 2, coarse.shape[1], 2)
        known = ~np.isnan(strip)
        # Quarters are summed, so that the sum of four of the largest float32 does not overflow.
        sums = np.pad(np.where(known, strip, 0) * np.float32(0.25), padding).reshape(blocks).sum(axis=(1, 3))
        counts = np.pad(known, padding).reshape(blocks).sum(axis=(1, 3), dtype=np.float32)
        with np.errstate(invalid="ignore"):  # Zero by zero is NaN: unknown.
            coarse[rows.start // 2 : rows.start // 2 + len(sums)] = sums / (counts * np.float32(0.25))
    if np.isnan(coarse).any():
        _fill(coarse)
    for rows in _strips(depth_m):
        strip = depth_m[rows]
        # The strip with a row of the half before and behind it, which interpolation needs.
        top, bottom = rows.start // 2, rows.start // 2 + -(-len(strip) // 2)
        part = coarse[max(0, top - 1) : bottom + 1]
        skipped = 2 * (top - max(0, top - 1))
        enlarged = _double(_double(part)[skipped : skipped + len(strip)].T).T[:, :width]
        np.copyto(strip, enlarged, where=np.isnan(strip))


def _double(rows: Depth) -> Depth:
    """Return twice as many rows, interpolated linearly between the centres of the old ones."""
    above, below = np.vstack([rows[:1], rows[:-1]]), np.vstack([rows[1:], rows[-1:]])
    doubled = np.empty((2 * len(rows), rows.shape[1]), dtype=np.float32)
    doubled[0::2] = 0.75 * rows + 0.25 * above
    doubled[1::2] = 0.75 * rows + 0.25 * below
    return doubled

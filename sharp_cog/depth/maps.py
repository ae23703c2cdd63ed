"""Decoding external depth maps: converts their numbers to metres, by a format that is named or guessed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sharp_cog.depth import files as depth_files
from sharp_cog.errors import DepthError
from sharp_cog.geometry.camera import Camera

_LOG = logging.getLogger(__name__)

Depth = NDArray[np.float32]

MAX_ASPECT_DIFFERENCE = 0.02
"""Largest relative difference between the aspects of a depth map and its image."""

MIN_DEPTH_M = 0.001
"""Nearest depth of a map."""

RELATIVE_RANGE_M = (1.0, 10.0)
"""Depths of the values 0 and 1 in a relative map."""

INVERSE_MEDIAN_M = 3.0
"""Median depth of an inverse-relative map."""

MIN_INVERSE = 1e-3
"""Least value of an inverse-relative map; smaller ones, such as the 0 of a sky, are raised to it."""

_RELATIVE_LIKE = (-0.1, 1.5)
"""Range in which all values of a map must lie to be taken as relative; resizing may have taken them beyond 0 and 1."""

_INVERSE_LIKE = 50.0
"""Maximum above which a map is taken as inverse-relative; few scenes are so deep in metres, and 8 bits go to 255."""

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
    """

    depth_m: Depth
    is_metric: bool = True

    def __post_init__(self) -> None:
        if self.depth_m.ndim != 2 or self.depth_m.dtype != np.float32:
            raise ValueError(f"depth_m is {self.depth_m.dtype} of shape {self.depth_m.shape}, expected 2-D float32")


def decode(
    depth_bytes: bytes, camera: Camera, *, depth_format: str = "auto", orientation: Image.Transpose | None = None
) -> DepthMap:
    """Decode the bytes of a depth map.

    In a metric map, outliers nearer than half of the 0.1 % quantile are raised to that quantile, and logged.

    Args:
        depth_bytes: Content of a file in a format that `sharp_cog.depth.files.read` reads.
        camera: Camera of the image, whose aspect the map must have within 2 %.
        depth_format: `metric` (metres), `relative` (0 to 1, mapped to 1 to 10 m), `inverse-relative` (disparity-like,
            inverted so that the median is 3 m), or `auto`: the format that the file itself names, else `relative` if
            all values lie in [-0.1, 1.5], `inverse-relative` if the maximum exceeds 50, and `metric` otherwise.
        orientation: Operation that made the image upright. It is applied to a map that has the image's size from
            before.

    Raises:
        DepthError: The bytes are not a depth map, or it is broken, has no known pixel, or has another aspect.
    """
    raw = depth_files.read(depth_bytes)
    return _from_values(raw.values, camera, depth_format, orientation, is_metric=raw.is_metric)


def from_array(
    values: NDArray[Any], camera: Camera, *, depth_format: str = "auto", orientation: Image.Transpose | None = None
) -> DepthMap:
    """Take a depth map that is an array already.

    Args:
        values: (height, width), floats or integers.
        camera: Camera of the image, as for `decode`.
        depth_format: Meaning of the numbers, as for `decode`.
        orientation: Operation that made the image upright, as for `decode`.

    Raises:
        TypeError: The array has another shape or type.
        DepthError: The map has no known pixel, or another aspect.
    """
    if values.ndim != 2 or values.dtype.kind not in "fiu" or not values.size:
        raise TypeError(
            f"depth is a numpy array of shape {values.shape} and type {values.dtype}: give (height, width) numbers"
        )
    return _from_values(values.astype(np.float32), camera, depth_format, orientation, is_metric=False)


def _from_values(
    values: Depth, camera: Camera, depth_format: str, orientation: Image.Transpose | None, *, is_metric: bool
) -> DepthMap:
    values = _make_upright(values, camera, orientation)
    height, width = values.shape
    difference = abs(width * camera.height / (height * camera.width) - 1)
    if difference > MAX_ASPECT_DIFFERENCE:
        raise DepthError(
            f"the depth map is {width}x{height}, the image {camera.width}x{camera.height}: "
            f"their aspects differ by {difference:.0%}, more than {MAX_ASPECT_DIFFERENCE:.0%}: crop one of them"
        )
    finite = values[np.isfinite(values)]
    if not finite.any():
        raise DepthError("the depth map has no known pixel: every value is zero, NaN or infinite")
    if depth_format == "auto":
        depth_format = "metric" if is_metric else _guess_format(finite)
    convert = {"metric": _from_metric, "relative": _from_relative, "inverse-relative": _from_inverse}[depth_format]
    depth_m = convert(values)
    if np.isnan(depth_m).all():
        raise DepthError("the depth map has no known pixel: every value is zero, negative, NaN or infinite")
    return DepthMap(depth_m=np.maximum(depth_m, np.float32(MIN_DEPTH_M)), is_metric=depth_format == "metric")


def known_everywhere(depth_map: DepthMap) -> DepthMap:
    """Return the map with its unknown pixels filled from the nearest known ones; log how many.

    Models without monodepth need this. SHARP fills unknown pixels from its monodepth.
    """
    known = ~np.isnan(depth_map.depth_m)
    num_unknown = known.size - int(np.count_nonzero(known))
    if not num_unknown:
        return depth_map
    _LOG.warning(
        "%d of %d pixels of the depth map are unknown and were filled from known ones", num_unknown, known.size
    )
    return DepthMap(depth_m=_fill(depth_map.depth_m, known), is_metric=depth_map.is_metric)


def _make_upright(values: Depth, camera: Camera, orientation: Image.Transpose | None) -> Depth:
    """Rotate a map that has the size of its image from before that was made upright."""
    height, width = values.shape
    is_stored_size = (width, height) == (camera.height, camera.width) and width != height
    if orientation is None or orientation not in _SIDEWAYS or not is_stored_size:
        return values
    _LOG.info("the depth map has the size of the image before EXIF's rotation, and was rotated with it")
    upright: Depth = np.ascontiguousarray(np.asarray(Image.fromarray(values).transpose(orientation)))
    return upright


def _guess_format(finite: Depth) -> str:
    """Return the format that the numbers look like, and log the reason."""
    low, high = finite.min(), finite.max()
    # The limits are rounded to float32 like the map. A map of exactly -0.1 would otherwise be below the limit.
    least, most = np.array(_RELATIVE_LIKE, dtype=np.float32)
    if least <= low and high <= most:
        depth_format, reason = "relative", f"all values lie between {_RELATIVE_LIKE[0]} and {_RELATIVE_LIKE[1]}"
    elif high > _INVERSE_LIKE:
        depth_format, reason = "inverse-relative", f"the maximum exceeds {_INVERSE_LIKE:g}"
    else:
        depth_format, reason = "metric", f"the maximum is at most {_INVERSE_LIKE:g}"
    _LOG.info(
        "the depth map (%.4g to %.4g) is taken as %s, since %s: name another format by depth_format",
        low,
        high,
        depth_format,
        reason,
    )
    return depth_format


def _from_metric(values: Depth) -> Depth:
    """Return metres as they are, but for outliers near zero."""
    known = np.isfinite(values) & (values > 0)
    if not known.any():
        return np.full_like(values, np.nan)
    floor_m = np.float32(np.quantile(values[known], _FLOOR_QUANTILE))
    outliers = known & (values < _FLOOR_SHARE * floor_m)
    if outliers.any():
        _LOG.warning(
            "%d pixels of the depth map are outliers nearer than half of %.3g m, and were raised to it",
            np.count_nonzero(outliers),
            floor_m,
        )
    return np.where(known, np.where(outliers, floor_m, values), np.float32(np.nan))


def _from_relative(values: Depth) -> Depth:
    """Map 0 to 1 to `RELATIVE_RANGE_M`."""
    near_m, far_m = RELATIVE_RANGE_M
    depth_m: Depth = np.where(
        np.isfinite(values), near_m + (far_m - near_m) * np.clip(values, 0, 1), np.float32(np.nan)
    ).astype(np.float32)
    return depth_m


def _from_inverse(values: Depth) -> Depth:
    """Invert disparity-like values, with the median at `INVERSE_MEDIAN_M`."""
    depth = 1 / np.maximum(values, np.float32(MIN_INVERSE))
    depth[~np.isfinite(values)] = np.nan
    depth_m: Depth = (depth * np.float32(INVERSE_MEDIAN_M / np.nanmedian(depth))).astype(np.float32)
    return depth_m


def _fill(depth_m: Depth, known: NDArray[np.bool_]) -> Depth:
    """Fill unknown pixels from a pyramid of means of the known ones, each from the finest level with a value."""
    height, width = depth_m.shape
    if height == 1 and width == 1:
        return depth_m
    # Halve the map, with odd sides padded by unknown pixels; fill the half recursively; enlarge it again, and take from
    # it the values of unknown pixels.
    padding = ((0, height % 2), (0, width % 2))
    blocks = (-(-height // 2), 2, -(-width // 2), 2)
    # Quarters are summed, so that the sum of four of the largest float32 does not overflow.
    sums = np.pad(np.where(known, depth_m, 0) * np.float32(0.25), padding).reshape(blocks).sum(axis=(1, 3))
    counts = np.pad(known, padding).reshape(blocks).sum(axis=(1, 3), dtype=np.float32)
    means = sums / np.maximum(counts * np.float32(0.25), np.float32(0.25))
    coarse = means if counts.all() else _fill(means, counts > 0)
    enlarged = _double(_double(coarse).T).T[:height, :width]
    return np.where(known, depth_m, enlarged)


def _double(rows: Depth) -> Depth:
    """Return twice as many rows, interpolated linearly between the centres of the old ones."""
    above, below = np.vstack([rows[:1], rows[:-1]]), np.vstack([rows[1:], rows[-1:]])
    doubled = np.empty((2 * len(rows), rows.shape[1]), dtype=np.float32)
    doubled[0::2] = 0.75 * rows + 0.25 * above
    doubled[1::2] = 0.75 * rows + 0.25 * below
    return doubled

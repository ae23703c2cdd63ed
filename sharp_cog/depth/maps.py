"""A depth map that the caller brings: its numbers become metres, as its format says or as they look."""

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
MIN_DEPTH_M = 0.001
RELATIVE_RANGE_M = (1.0, 10.0)
"""Where 0 and 1 of a relative map lie."""
INVERSE_MEDIAN_M = 3.0
"""Where the median of an inverse-relative map lies."""
MIN_INVERSE = 1e-3

_RELATIVE_LIKE, _INVERSE_LIKE = (-0.1, 1.5), 50.0
_SIDEWAYS = (
    *(Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270),
    *(Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE),
)
_FLOOR_QUANTILE, _FLOOR_SHARE = 0.001, 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthMap:
    """Depth along the optical axis of a photograph's camera.

    Attributes:
        depth_m: (height, width) float32, metres, positive, NaN where unknown; the photograph's aspect, not its size.
        is_metric: Whether these are metres by measure, and not by a mapping that has to make them up.
    """

    depth_m: Depth
    is_metric: bool = True

    def __post_init__(self) -> None:
        if self.depth_m.ndim != 2 or self.depth_m.dtype != np.float32:
            raise ValueError(f"depth_m is {self.depth_m.dtype} of shape {self.depth_m.shape}, expected 2-D float32")


def decode(
    depth_bytes: bytes, camera: Camera, *, depth_format: str = "auto", orientation: Image.Transpose | None = None
) -> DepthMap:
    """Decodes a depth map.

    A near-zero outlier would flatten the scene, since the network works in units of the nearest depth: in metric maps
    what lies under half of the 0.1 % quantile is raised to that quantile, and logged.

    Args:
        depth_bytes: What `sharp_cog.depth.files.read` reads.
        camera: The photograph's camera, whose aspect the map must have within 2 %.
        depth_format: `metric` (metres), `relative` (0 to 1, mapped to 1 to 10 m), `inverse-relative` (disparity-like,
            inverted so that the median is 3 m), or `auto`: `relative` where all lies in [-0.1, 1.5],
            `inverse-relative` where the maximum exceeds 50, else `metric`; files that say what they are, are believed.
        orientation: How the photograph was made upright. A map of the size that it had before gets the same treatment.

    Raises:
        DepthError: Not a depth map, broken, without a known pixel, or of another aspect.
    """
    raw = depth_files.read(depth_bytes)
    return _from_values(raw.values, camera, depth_format, orientation, is_metric=raw.is_metric)


def from_array(
    values: NDArray[Any], camera: Camera, *, depth_format: str = "auto", orientation: Image.Transpose | None = None
) -> DepthMap:
    """Take a depth map as numbers; everything else is as for `decode`.

    Args:
        values: (height, width), floats or integers.
        camera: As for `decode`.
        depth_format: As for `decode`.
        orientation: As for `decode`.

    Raises:
        TypeError: The array has another shape or type.
        DepthError: As for `decode`.
    """
    if values.ndim != 2 or values.dtype.kind not in "fiu" or not values.size:
        raise TypeError(
            f"depth is a numpy array of shape {values.shape} and type {values.dtype}: give (height, width) numbers"
        )
    return _from_values(values.astype(np.float32), camera, depth_format, orientation, is_metric=False)


def _from_values(
    values: Depth, camera: Camera, depth_format: str, orientation: Image.Transpose | None, *, is_metric: bool
) -> DepthMap:
    values = _oriented(values, camera, orientation)
    height, width = values.shape
    difference = abs(width * camera.height / (height * camera.width) - 1)
    if difference > MAX_ASPECT_DIFFERENCE:
        raise DepthError(
            f"the depth map is {width}x{height}, the picture {camera.width}x{camera.height}: "
            f"their aspects differ by {difference:.0%}, more than {MAX_ASPECT_DIFFERENCE:.0%}: crop one of them"
        )
    finite = values[np.isfinite(values)]
    if not finite.any():
        raise DepthError("the depth map has no known pixel: every value is zero, NaN or infinite")
    if depth_format == "auto":
        depth_format = "metric" if is_metric else _looks(finite)
    depth_m = {"metric": _metric, "relative": _relative, "inverse-relative": _inverse}[depth_format](values)
    if np.isnan(depth_m).all():
        raise DepthError("the depth map has no known pixel: every value is zero, negative, NaN or infinite")
    return DepthMap(depth_m=np.maximum(depth_m, np.float32(MIN_DEPTH_M)), is_metric=depth_format == "metric")


def known_everywhere(depth_map: DepthMap) -> DepthMap:
    """Fills what is unknown from the nearest known pixels, for models without depth of their own; logs how many."""
    known = ~np.isnan(depth_map.depth_m)
    num_unknown = known.size - int(np.count_nonzero(known))
    if not num_unknown:
        return depth_map
    _LOG.warning(
        "%d of %d pixels of the depth map are unknown and were filled from known ones", num_unknown, known.size
    )
    return DepthMap(depth_m=_filled(depth_map.depth_m, known), is_metric=depth_map.is_metric)


def _oriented(values: Depth, camera: Camera, orientation: Image.Transpose | None) -> Depth:
    """Turns a map that has the size of the photograph before it was turned upright."""
    height, width = values.shape
    is_of_before = (width, height) == (camera.height, camera.width) and width != height
    if orientation is None or orientation not in _SIDEWAYS or not is_of_before:
        return values
    _LOG.info("the depth map has the size of the picture before EXIF turned it upright, and was turned along")
    turned: Depth = np.ascontiguousarray(np.asarray(Image.fromarray(values).transpose(orientation)))
    return turned


def _looks(finite: Depth) -> str:
    """The format that the numbers look like; says so."""
    low, high = finite.min(), finite.max()
    least, most = np.array(_RELATIVE_LIKE, dtype=np.float32)  # In a map's precision -0.1 is a little less.
    if least <= low and high <= most:
        depth_format, reason = "relative", f"all lies within {_RELATIVE_LIKE[0]} and {_RELATIVE_LIKE[1]}"
    elif high > _INVERSE_LIKE:
        depth_format, reason = "inverse-relative", f"the maximum exceeds {_INVERSE_LIKE:g}"
    else:
        depth_format, reason = "metric", f"the maximum is at most {_INVERSE_LIKE:g}"
    _LOG.info(
        "the depth map (%.4g to %.4g) is taken as %s, since %s: name another by depth_format",
        low,
        high,
        depth_format,
        reason,
    )
    return depth_format


def _metric(values: Depth) -> Depth:
    known = np.isfinite(values) & (values > 0)
    if not known.any():
        return np.full_like(values, np.nan)
    floor_m = np.float32(np.quantile(values[known], _FLOOR_QUANTILE))
    outliers = known & (values < _FLOOR_SHARE * floor_m)
    if outliers.any():
        _LOG.warning(
            "%d pixels of the depth map are nearer than half of %.3g m, far before the rest, and were raised to it",
            np.count_nonzero(outliers),
            floor_m,
        )
    return np.where(known, np.where(outliers, floor_m, values), np.float32(np.nan))


def _relative(values: Depth) -> Depth:
    near_m, far_m = RELATIVE_RANGE_M
    depth_m: Depth = np.where(
        np.isfinite(values), near_m + (far_m - near_m) * np.clip(values, 0, 1), np.float32(np.nan)
    ).astype(np.float32)
    return depth_m


def _inverse(values: Depth) -> Depth:
    depth = 1 / np.maximum(values, np.float32(MIN_INVERSE))
    depth[~np.isfinite(values)] = np.nan
    depth_m: Depth = (depth * np.float32(INVERSE_MEDIAN_M / np.nanmedian(depth))).astype(np.float32)
    return depth_m


def _filled(depth_m: Depth, known: NDArray[np.bool_]) -> Depth:
    """Fills unknown pixels from a pyramid of means of the known ones: each takes the finest level that knows."""
    height, width = depth_m.shape
    if height == 1 and width == 1:
        return depth_m
    # Halve, an odd side padded with unknown pixels, fill the half, and take from it what is unknown here.
    padding = ((0, height % 2), (0, width % 2))
    blocks = (-(-height // 2), 2, -(-width // 2), 2)
    # In quarters, so that the sum of four stays in float32's range.
    sums = np.pad(np.where(known, depth_m, 0) * np.float32(0.25), padding).reshape(blocks).sum(axis=(1, 3))
    counts = np.pad(known, padding).reshape(blocks).sum(axis=(1, 3), dtype=np.float32)
    means = sums / np.maximum(counts * np.float32(0.25), np.float32(0.25))
    coarse = means if counts.all() else _filled(means, counts > 0)
    enlarged = _doubled(_doubled(coarse).T).T[:height, :width]
    return np.where(known, depth_m, enlarged)


def _doubled(rows: Depth) -> Depth:
    """Twice as many rows, linearly interpolated between the centres of the given ones."""
    above, below = np.vstack([rows[:1], rows[:-1]]), np.vstack([rows[1:], rows[-1:]])
    doubled = np.empty((2 * len(rows), rows.shape[1]), dtype=np.float32)
    doubled[0::2] = 0.75 * rows + 0.25 * above
    doubled[1::2] = 0.75 * rows + 0.25 * below
    return doubled

"""External depth: a depth map of the caller's replaces the two layers of SHARP's monodepth."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharp_cog.errors import DepthError

_LOG = logging.getLogger(__name__)

MIN_DEPTH_M = 0.001
"""Nearest depth of an external map."""

MAX_DEPTH_M = 100.0
"""Farthest depth of an external map."""

_MIN_FRONT_M = 1e-4
"""Least front depth that the back layer is divided by."""

_NUM_SAMPLES = 1 << 16
"""Approximate number of pixels that an affine fit looks at."""

_NUM_RANKED = 1 << 13
"""Approximate number of pixels that are ranked to compare the order of two maps."""

_MIN_RANKED = 64
"""Least number of known pixels whose order means something."""

_CONTRARY_ORDER = -0.3
"""Rank correlation of map and monodepth below which the map counts as upside down."""

_NUM_ROUNDS = 20
"""Number of rounds of reweighting in an affine fit."""

_BISQUARE = 4.685
"""Tukey's constant: the fit is 95 % efficient where errors are normal, and ignores outliers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthUse:
    """Options that say how an external depth map replaces monodepth.

    Attributes:
        mode: `ratio`: the map is the front layer, and the back layer keeps monodepth's ratio of back to front.
            `fixed`: the map is the front layer, and the back layer is the map times `back_surface_factor`. `align`:
            both layers of monodepth, multiplied by the scales that the checkpoint's depth alignment predicts.
        back_surface_factor: Factor of the mode `fixed`, at least 1.
        fit: Fit of the map to the front layer of monodepth, which comes first: `none`, `median` (one factor), or
            `affine` (a factor and a shift of disparity).
        scale: Factor on the depth, after the fit.
        offset_m: Depth in metres to add, after the scale.
        is_assumed: Whether the format of the map was concluded, and not named.
        other_format: Format to suggest if near and far turn out the other way round.
    """

    mode: str = "ratio"
    back_surface_factor: float = 1.0
    fit: str = "none"
    scale: float = 1.0
    offset_m: float = 0.0
    # Both decide only about errors: two uses that treat a good map alike are equal.
    is_assumed: bool = field(default=False, compare=False)
    other_format: str = field(default="inverse-relative", compare=False)


DEFAULT_USE = DepthUse()


def prepare(depth_m: Tensor, front_m: Tensor | None, use: DepthUse) -> Tensor:
    """Fit, scale and clamp an external depth map, and fill its unknown pixels.

    Args:
        depth_m: (B, 1, H, W), metres, NaN where unknown.
        front_m: Front layer of monodepth, of the same shape; None if the model has no monodepth, in which case every
            pixel of the map must be known.
        use: Fit, scale and offset.

    Returns:
        (B, 1, H, W), metres, between `MIN_DEPTH_M` and `MAX_DEPTH_M`; in the mode `align` it may be farther.

    Raises:
        DepthError: The map has no known pixel, or there is no monodepth to fit it to, or near and far are the other way
            round than in monodepth.
    """
    if front_m is not None:
        for external, front in zip(depth_m, front_m, strict=True):
            _check_order(external, front, use)
    # First the fit, then scale and offset, then the limits, then unknown pixels: NaN passes through all of it.
    if use.fit != "none":
        if front_m is None:
            raise DepthError(
                f"depth_fit is {use.fit!r}, but this model has no monodepth to fit the depth map to: choose 'none'"
            )
        fit = _fit_median if use.fit == "median" else _fit_affine
        depth_m = torch.stack([fit(external, front, use) for external, front in zip(depth_m, front_m, strict=True)])
    # In the mode `align` the map is only compared with monodepth, which has no such limit.
    farthest_m = None if use.mode == "align" else MAX_DEPTH_M
    depth_m = (depth_m * use.scale + use.offset_m).clamp(MIN_DEPTH_M, farthest_m)
    if front_m is None:
        return depth_m
    return torch.stack([_fill(external, front) for external, front in zip(depth_m, front_m, strict=True)])


def replace_layers(monodepth_m: Tensor, depth_m: Tensor, use: DepthUse) -> Tensor:
    """Return the two layers of depth for an external map, in the modes `ratio` and `fixed`.

    Args:
        monodepth_m: (B, 2, H, W), metres, front layer first.
        depth_m: (B, 1, H, W), as `prepare` returns it.
        use: Mode and factor.

    Returns:
        (B, 2, H, W), metres, front layer first.
    """
    if use.mode == "fixed":
        return torch.cat([depth_m, depth_m * use.back_surface_factor], dim=1)
    ratio = monodepth_m[:, 1:] / monodepth_m[:, :1].clamp(min=_MIN_FRONT_M)
    return torch.cat([depth_m, depth_m * ratio], dim=1)


def _fill(depth_m: Tensor, front_m: Tensor) -> Tensor:
    """Fill unknown pixels from monodepth, which is brought to the map by the median of their ratios."""
    known = ~depth_m.isnan()
    num_unknown = int((~known).sum())
    if num_unknown == 0:
        return depth_m
    if num_unknown == depth_m.numel():
        raise DepthError("the depth map has no known pixel: every value is zero, negative, NaN or infinite")
    # A median, since single pixels of either map may be wrong by orders of magnitude.
    factor = (depth_m[known] / front_m[known]).median()
    _LOG.warning(
        "%d of %d pixels of the depth map are unknown and were filled from SHARP's monodepth, times %.3g",
        num_unknown,
        depth_m.numel(),
        factor.item(),
    )
    return torch.where(known, depth_m, (front_m * factor).clamp(MIN_DEPTH_M, MAX_DEPTH_M))


def _check_order(depth_m: Tensor, front_m: Tensor, use: DepthUse) -> None:
    """Refuse a map of an assumed format that is near where monodepth is far; warn if the format was named.

    A map that is merely better than monodepth has its order in most places.
    """
    external, own = _samples(depth_m, _NUM_RANKED), _samples(front_m, _NUM_RANKED)
    known = np.isfinite(external) & np.isfinite(own)
    if np.count_nonzero(known) < _MIN_RANKED:
        return
    order = rank_correlation(external[known], own[known])
    if order > _CONTRARY_ORDER:
        return
    if use.is_assumed:
        raise _contrary(f"rank correlation {order:.2f}", use)
    _LOG.warning(
        "the depth map is near where SHARP's monodepth is far (rank correlation %.2f): is depth_format %s right?",
        order,
        use.other_format,
    )


def _contrary(measure: str, use: DepthUse) -> DepthError:
    return DepthError(
        f"the depth map is near where SHARP's monodepth is far ({measure}), so its values mean something else than "
        f"was {'assumed' if use.is_assumed else 'named'}: set depth_format to {use.other_format}"
    )


def rank_correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Return Spearman's rank correlation of two arrays of the same length; 0 if one of them is constant."""
    ranks = []
    for values in (x, y):
        _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - counts / 2)[index])  # Equal values share the mean of their ranks.
    x, y = (rank - rank.mean() for rank in ranks)
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size else 0.0


def _fit_median(depth_m: Tensor, front_m: Tensor, use: DepthUse) -> Tensor:
    """Return the map times the median of monodepth / map over the known pixels."""
    # Unknown pixels are NaN here, and their ratios too.
    factor = torch.nanmedian(front_m / depth_m)
    _LOG.info("the depth map was fitted to SHARP's monodepth: times %.3g", factor.item())
    return depth_m * factor


def _fit_affine(depth_m: Tensor, front_m: Tensor, use: DepthUse) -> Tensor:
    """Return the map with its disparity scaled and shifted to fit the disparity of monodepth.

    The fit ignores outliers, since the two maps differ in places: that is why a caller brings an external one.

    Raises:
        DepthError: The factor is negative, which would turn the scene inside out.
    """
    # In disparity, since relative depth maps know disparity up to a factor and a shift, and not depth.
    external, own = _samples(1.0 / depth_m, _NUM_SAMPLES), _samples(1.0 / front_m, _NUM_SAMPLES)
    known = np.isfinite(external) & np.isfinite(own)
    factor, shift = robust_line(external[known], own[known])
    if factor < 0:
        raise _contrary(f"disparity fits with a factor of {factor:.3g}", use)
    if not factor > 0:
        _LOG.warning("the depth map is flat, and was fitted to SHARP's monodepth by its median alone")
        return _fit_median(depth_m, front_m, use)
    _LOG.info("the depth map was fitted to SHARP's monodepth: disparity times %.3g, plus %.3g / m", factor, shift)
    # A negative shift may bring far pixels to a disparity of zero or less, which would be behind the camera.
    return 1.0 / (factor / depth_m + shift).clamp(min=1.0 / MAX_DEPTH_M)


def _samples(values: Tensor, number: int) -> NDArray[np.float64]:
    """Return about this number of values, evenly spread, in float64 on the CPU."""
    flat = values.flatten()
    # In float64, since the fit sums squares of small differences.
    return flat[:: max(1, flat.numel() // number)].cpu().numpy().astype(np.float64)


def robust_line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Fit a line y = factor * x + shift through most of the points.

    Iteratively reweighted least squares with Tukey's bisquare weights (Holland and Welsch, 1977), starting from
    medians.

    Args:
        x: (N,).
        y: (N,).

    Returns:
        Factor and shift; 0 and the median of y if x is constant.
    """
    centre_x, centre_y = float(np.median(x)), float(np.median(y))
    spread_x, spread_y = (float(np.median(np.abs(v - c))) for v, c in ((x, centre_x), (y, centre_y)))
    # At least half of the values are equal: a line through them has no slope.
    if spread_x <= 1e-9 * max(abs(centre_x), 1e-9):
        return 0.0, centre_y
    # The start: the ratio of the spreads is the slope if the two agree, and outliers hardly move a median.
    factor = spread_y / spread_x
    shift = centre_y - factor * centre_x
    for _ in range(_NUM_ROUNDS):
        residual = y - factor * x - shift
        # 1.4826 times the median absolute deviation estimates a normal distribution's standard deviation.
        limit = _BISQUARE * 1.4826 * max(float(np.median(np.abs(residual))), 1e-9 * max(abs(centre_y), 1e-9))
        # Full weight on the line, none beyond the limit: a point far away does not count at all.
        weight = np.clip(1 - (residual / limit) ** 2, 0, None) ** 2
        total = weight.sum()
        mean_x, mean_y = (weight @ x) / total, (weight @ y) / total
        variance = weight @ (x - mean_x) ** 2
        if variance <= 0:
            break
        # The weighted least-squares line in closed form.
        factor = float(weight @ ((x - mean_x) * (y - mean_y)) / variance)
        shift = float(mean_y - factor * mean_x)
    return factor, shift

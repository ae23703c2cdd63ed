"""A depth map that the caller brings, in the place of SHARP's own two layers."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharp_cog.errors import DepthError

_LOG = logging.getLogger(__name__)

MIN_DEPTH_M, MAX_DEPTH_M = 0.001, 100.0
_MIN_FRONT_M = 1e-4
_NUM_SAMPLES = 1 << 16
_NUM_ROUNDS = 20
_BISQUARE = 4.685
"""Tukey's constant: 95 % efficient where errors are normal, blind to what is far off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthUse:
    """How a given depth map takes the place of SHARP's own.

    Attributes:
        mode: `ratio`: it is the front layer, and the back layer lies behind it as SHARP's own does, by their ratio.
            `fixed`: the back layer is it times `back_surface_factor`. `align`: SHARP's own layers, multiplied by
            what the checkpoint's depth-alignment network makes of both.
        back_surface_factor: At least 1.
        fit: Bring the map to SHARP's own front layer first: `none`, `median` (one factor), `affine` (a factor and a
            shift of disparity).
        scale: Factor on the depth, after the fit.
        offset_m: Added after `scale`, in metres.
    """

    mode: str = "ratio"
    back_surface_factor: float = 1.0
    fit: str = "none"
    scale: float = 1.0
    offset_m: float = 0.0


DEFAULT_USE = DepthUse()


def prepare(depth_m: Tensor, own_m: Tensor | None, use: DepthUse) -> Tensor:
    """Fits, scales and clamps a map, and fills what it does not know.

    Args:
        depth_m: (B, 1, H, W), metres; NaN is unknown.
        own_m: SHARP's own front layer, of the same shape; None where there is none, and then nothing may be unknown.
        use: How.

    Returns:
        (B, 1, H, W), metres within `MIN_DEPTH_M` and, but for the mode `align`, `MAX_DEPTH_M`.

    Raises:
        DepthError: The map has no known pixel, or a fit is asked for that has nothing to be fitted to.
    """
    if use.fit != "none":
        if own_m is None:
            raise DepthError(f"depth_fit is {use.fit!r}, but this model has no depth of its own to fit to: choose none")
        fit = _fit_median if use.fit == "median" else _fit_affine
        depth_m = torch.stack([fit(given, own) for given, own in zip(depth_m, own_m, strict=True)])
    # What is only compared with SHARP's own depth may be as far as that.
    farthest_m = None if use.mode == "align" else MAX_DEPTH_M
    depth_m = (depth_m * use.scale + use.offset_m).clamp(MIN_DEPTH_M, farthest_m)
    if own_m is None:
        return depth_m
    return torch.stack([_filled(given, own) for given, own in zip(depth_m, own_m, strict=True)])


def replace_layers(own_m: Tensor, depth_m: Tensor, use: DepthUse) -> Tensor:
    """The two layers that a map makes in the modes `ratio` and `fixed`.

    Args:
        own_m: (B, 2, H, W), SHARP's own layers in metres, front first.
        depth_m: (B, 1, H, W), as `prepare` returns it.
        use: How.

    Returns:
        (B, 2, H, W), metres.
    """
    if use.mode == "fixed":
        return torch.cat([depth_m, depth_m * use.back_surface_factor], dim=1)
    ratio = own_m[:, 1:] / own_m[:, :1].clamp(min=_MIN_FRONT_M)
    return torch.cat([depth_m, depth_m * ratio], dim=1)


def _filled(depth_m: Tensor, own_m: Tensor) -> Tensor:
    """Fills what is unknown from SHARP's own depth, brought to the map by the median of their ratios."""
    known = ~depth_m.isnan()
    num_unknown = int((~known).sum())
    if num_unknown == 0:
        return depth_m
    if num_unknown == depth_m.numel():
        raise DepthError("the depth map has no known pixel: every value is zero, negative, NaN or infinite")
    factor = (depth_m[known] / own_m[known]).median()
    _LOG.warning(
        "%d of %d pixels of the depth map are unknown and were filled from SHARP's own depth, times %.3g",
        num_unknown,
        depth_m.numel(),
        factor.item(),
    )
    return torch.where(known, depth_m, (own_m * factor).clamp(MIN_DEPTH_M, MAX_DEPTH_M))


def _fit_median(depth_m: Tensor, own_m: Tensor) -> Tensor:
    """The map times the median of own / given over what is known."""
    factor = torch.nanmedian(own_m / depth_m)
    _LOG.info("the depth map was fitted to SHARP's own: times %.3g", factor.item())
    return depth_m * factor


def _fit_affine(depth_m: Tensor, own_m: Tensor) -> Tensor:
    """The map whose disparity is a factor and a shift away from the given one, fitted to SHARP's own disparity.

    By iteratively reweighted least squares with Tukey's bisquare weights, so that what the two see differently, which
    is why a map is given at all, does not count.
    """
    given, own = _samples(1.0 / depth_m), _samples(1.0 / own_m)
    known = np.isfinite(given) & np.isfinite(own)
    factor, shift = robust_line(given[known], own[known])
    if not factor > 0:
        _LOG.warning("the depth map does not agree with SHARP's own (factor %.3g): fitted by its median alone", factor)
        return _fit_median(depth_m, own_m)
    _LOG.info("the depth map was fitted to SHARP's own: disparity times %.3g, plus %.3g / m", factor, shift)
    return 1.0 / (factor / depth_m + shift).clamp(min=1.0 / MAX_DEPTH_M)


def _samples(values: Tensor) -> NDArray[np.float64]:
    """At most `_NUM_SAMPLES` values, evenly spread, in float64 on the CPU."""
    flat = values.flatten()
    return flat[:: max(1, flat.numel() // _NUM_SAMPLES)].cpu().numpy().astype(np.float64)


def robust_line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Factor and shift of the line y = factor x + shift through most of the points; (0, median) where x is constant."""
    centre_x, centre_y = float(np.median(x)), float(np.median(y))
    spread_x, spread_y = (float(np.median(np.abs(v - c))) for v, c in ((x, centre_x), (y, centre_y)))
    if spread_x <= 1e-9 * max(abs(centre_x), 1e-9):
        return 0.0, centre_y
    factor = spread_y / spread_x
    shift = centre_y - factor * centre_x
    for _ in range(_NUM_ROUNDS):
        residual = y - factor * x - shift
        limit = _BISQUARE * 1.4826 * max(float(np.median(np.abs(residual))), 1e-9 * max(abs(centre_y), 1e-9))
        weight = np.clip(1 - (residual / limit) ** 2, 0, None) ** 2
        total = weight.sum()
        mean_x, mean_y = (weight @ x) / total, (weight @ y) / total
        variance = weight @ (x - mean_x) ** 2
        if variance <= 0:
            break
        factor = float(weight @ ((x - mean_x) * (y - mean_y)) / variance)
        shift = float(mean_y - factor * mean_x)
    return factor, shift

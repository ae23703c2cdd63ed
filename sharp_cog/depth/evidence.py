"""Evidence of what the numbers of a depth map are: metres, or disparity, in which near is large.

What the file says about itself counts first. The numbers alone decide only where they are clear, since a map in the
wrong order turns the scene inside out: in every other case the caller is asked.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sharp_cog.errors import DepthError
from sharp_cog.text import plain

Values = NDArray[np.float32]

SKY = 9_000.0
"""Least value that only a sky has: Depth Pro ends at 10 km, Blender writes 1e10, other renderers write infinity."""

MILLIMETRE = 0.001
"""Metres in the unit of depth cameras."""

MAX_16_BIT = 65_535
"""Largest value of 16 bits."""

_UNITS = {"m": 1.0, "meter": 1.0, "meters": 1.0, "metre": 1.0, "metres": 1.0, "metric": 1.0}
_UNITS |= {"mm": MILLIMETRE, "millimeters": MILLIMETRE, "millimetres": MILLIMETRE, "cm": 0.01}
_UNITS |= {"millimeter": MILLIMETRE, "millimetre": MILLIMETRE} | dict.fromkeys(("centimeter", "centimetre"), 0.01)
_UNITS |= dict.fromkeys(("centimeters", "centimetres"), 0.01)
_DISPARITY = ("disparity", "disparities", "disp", "inversedepth", "invdepth", "idepth", "invz")
_METRIC = ("depth", "depths", "z", "zdepth", "depthmap", "zbuffer")
_NO_METRES = (
    *("relative", "rel", "norm", "normalized", "normalised", "inverse", "inv", "color", "vis", "mist", "mask", "conf"),
    *("confidence", "denoising", "uncertainty", "variance", "std", "min", "max", "valid"),
)

_SENSORS = ("lidar", "realsense", "kinect", "orbbec", "tof")
_DATASET_UNITS_M = {"kitti": 1 / 256, "zoedepth": 1 / 256, "vkitti": 0.01, "tum": 1 / 5000, "freiburg": 1 / 5000}
"""Metres in the unit of 16-bit maps of data sets and programs that are named in file names."""
_PICTURES = (
    *("vis", "visualization", "visualisation", "colored", "coloured", "colormap", "relative", "rel"),
    *("norm", "normalized", "normalised"),
)
"""Words of file names that say that a map is no metres, but not in which order it is."""

_UNIT = r"(mm|cm|m|(?:milli|centi)?met(?:er|re)s?)(?![a-z])"
_FILE_UNIT = re.compile(rf"(?:depth|distance)[ _.-]?{_UNIT}", re.IGNORECASE)
_TEXT_UNITS = (
    re.compile(rf"unit(?:s|[ _-]?type)?[\"']?\s*(?:[:=>]|is|are)+\s*[\"']?{_UNIT}", re.IGNORECASE),
    re.compile(rf"\b(?:depth|distance|range|z)\b[^.;\n]{{0,20}}?\b(?:in|as)\s+{_UNIT}", re.IGNORECASE),
)
_TEXT_DISPARITY = re.compile(r"\b(disparity|inverse[ -]depth)\b", re.IGNORECASE)
_MAX_TEXT_CHARS = 10_000

_MAX_NAME_CHARS = 200
"""Number of characters of a name that are looked at."""

_LARGEST_8_BIT = 255
"""Largest of 8-bit values. Whole numbers below it are no millimetres, since cameras do not see nearer than 0.25 m."""

_NEAR_ZERO = 0.03
"""Fraction of the range below which a normalised map has values."""

_NEAR_ONE = 0.9
"""Fraction of the range above which a normalised map has values; resizing blurs extremes."""

_ABOVE_ONE = 1.1
"""Largest value of a map in [0, 1] that resizing may have sharpened."""

_FULL = 0.98
"""Fraction of the range of 16 bits above which a map with zeros counts as normalised."""

_MAX_SAMPLES = 1024
"""Samples along the longer side of a large map, which are enough to look at."""

_GRID = 96
"""Cells along the longer side of the map, to which it is reduced by medians before planes are fitted."""

_WINDOW_SHARES = (2, 3, 5, 8)
"""Sides of the windows in which planes are fitted, as fractions of the grid's sides."""

_CLEAR = 2.0
"""Factor between the squared residuals of two fits from which one counts as better."""

_MAX_RESIDUAL = 0.06
"""Largest unexplained fraction of the variance in a window that counts as a plane."""

_MIN_RATIO = 1.02
"""Least ratio of the largest to the least value in a window that says something."""

_MIN_VOTES = 8
"""Least number of windows that must agree."""

_MAJORITY = 0.85
"""Fraction of the windows that must agree."""

_MAX_CEILINGS = 0.75
"""Largest fraction of the planes of a photograph that may be ceilings."""

_CONTRARY = 1.4
"""Factor between the medians of the upper and the lower quarter above which one of them counts as nearer."""

_RAMP = 0.02
"""Unexplained fraction of the variance below which one plane explains a whole map too well for disparity."""

_EXACT_RAMP = 1e-4
"""The same below which a map that its file calls metric is a made-up ramp, whatever its shape."""

_MAX_MEDIAN_M = 300.0
"""Largest median of a metric map that is believed: maps in millimetres and centimetres lie beyond."""

_MIN_SKY = 0.002
"""Least fraction of the pixels that a sky has."""

_SKY_GAP = 0.1
"""Fraction of `SKY` below which all the rest of a scene lies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """What a depth file says about its own numbers.

    Attributes:
        format: `metric`, `inverse-relative`, or empty for numbers that are no metres and of unknown order.
        reason: Phrase that says where the file says so.
        unit_m: Metres in the unit of a metric map.
        is_certain: Whether it holds even if the numbers look different. The name `depth` alone is also given to
            relative maps, and 16-bit integers hold millimetres as well as normalised values.
    """

    format: str
    reason: str
    unit_m: float = 1.0
    is_certain: bool = False


def from_name(name: str, kind: str) -> Statement | None:
    """Return what the name of an array or a channel says; None for a name that says nothing.

    Args:
        name: Such as `depth_mm`, `invDepth` or `ViewLayer.Depth.Z`.
        kind: Word for the bearer of the name: `array`, `field` or `channel`.
    """
    words = _words(name)
    reason = f"by the name of its {kind} {plain(name)!r}"
    pairs = {first + second for first, second in itertools.pairwise(words)}
    if any(word in _DISPARITY for word in (*words, *pairs)):
        return Statement(format="inverse-relative", reason=reason, is_certain=True)
    if not any(word in _METRIC for word in (*words, *pairs)) or any(word in _NO_METRES for word in words):
        return None
    units = [_UNITS[word] for word in words if word in _UNITS]
    return Statement(format="metric", reason=reason, unit_m=units[0] if units else 1.0, is_certain=bool(units))


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name[:_MAX_NAME_CHARS])]


def from_file_name(name: str, *, is_integer: bool) -> Statement | None:
    """Return what the name of a depth file says; None for a name that says nothing, such as `photo.depth.png`.

    The word `depth` alone says nothing, since files of every kind are called so.

    Args:
        name: Name of the file, perhaps with that of its folder before it: `disp_occ_0/000000_10.png`.
        is_integer: Whether the file holds integers of more than 8 bits.
    """
    name = name[-_MAX_NAME_CHARS:]
    words = _words(name)
    pairs = {first + second for first, second in itertools.pairwise(words)}
    reason = f"by the file name {plain(name)!r}"
    if any(word in _DISPARITY for word in (*words, *pairs)):
        return Statement(format="inverse-relative", reason=reason, is_certain=True)
    if any(word in _PICTURES for word in words):
        return Statement(format="", reason=reason)
    unit = _FILE_UNIT.search(name)
    if unit is not None:
        return Statement(format="metric", reason=reason, unit_m=_UNITS[unit[1].lower()], is_certain=True)
    if is_integer and (named := [_DATASET_UNITS_M[word] for word in words if word in _DATASET_UNITS_M]):
        return Statement(format="metric", reason=reason, unit_m=named[0], is_certain=True)
    if "metricdepth" in pairs or any(word in _SENSORS for word in words):
        unit_m = MILLIMETRE if is_integer else 1.0
        return Statement(format="metric", reason=reason, unit_m=unit_m, is_certain=True)
    return None


def from_text(text: str) -> Statement | None:
    """Return what the texts in a file's header say, such as `depth in mm` or `units=m`; None if they say nothing."""
    text = text[:_MAX_TEXT_CHARS]
    if found := _TEXT_DISPARITY.search(text):
        reason = f"by {plain(found[0])!r} in its header"
        return Statement(format="inverse-relative", reason=reason, is_certain=True)
    found = next((match for expression in _TEXT_UNITS if (match := expression.search(text))), None)
    if found is None:
        return None
    reason = f"by {plain(found[0])!r} in its header"
    return Statement(format="metric", reason=reason, unit_m=_UNITS[found[1].lower()], is_certain=True)


def stronger(first: Statement | None, second: Statement | None) -> Statement | None:
    """Return the statement that is certain, or else the first of two."""
    if first is None or (second is not None and second.is_certain and not first.is_certain):
        return second
    return first


def unit_of_integers(values: Values) -> float:
    """Return the metres in the unit of a metric map of integers: depth cameras count millimetres."""
    return MILLIMETRE if np.nanmax(values, initial=0) > _LARGEST_8_BIT else 1.0


def decide(values: Values, stated: Statement | None, *, is_integer: bool) -> Statement:
    """Decide what the numbers of a map are, from what its file says and from the numbers themselves.

    Args:
        values: (height, width), the numbers as they are in the file.
        stated: What the file says.
        is_integer: Whether the file holds integers.

    Raises:
        DepthError: The evidence is not clear; the message names the option that answers the question.
    """
    if stated is not None and stated.is_certain:
        return stated
    is_known = np.isfinite(values)
    low = float(np.min(values, where=is_known, initial=np.inf))
    high = float(np.max(values, where=is_known, initial=-np.inf))
    if is_integer and high <= _LARGEST_8_BIT:
        raise _refusal(low, high, "are integers of 8 bits")
    if stated is not None and not stated.format:
        raise _refusal(low, high, f"are no metres {stated.reason}")
    is_named = stated is not None
    if is_integer and (stated is None or stated.format == "metric"):
        reason = (
            "as integers of a depth camera, in millimetres" if stated is None else f"{stated.reason}, in millimetres"
        )
        stated = Statement(format="metric", reason=reason, unit_m=MILLIMETRE)
    step = max(1, max(values.shape) // _MAX_SAMPLES)
    sample = values[::step, ::step]
    if _is_normalised(sample, low, high, is_integer=is_integer):
        raise _refusal(low, high, "span the range of a normalised map")
    if _has_negative(sample):
        raise _refusal(low, high, "are negative in places, which metres are not")
    numbers = _Numbers.of(sample if stated is None else sample * np.float32(stated.unit_m))
    if stated is not None and stated.format == "metric" and numbers.contradict_metres:
        raise _refusal(low, high, f"look like disparity, though the map would be metric {stated.reason}")
    if stated is not None and stated.format != "metric" and numbers.planes == "metric":
        raise _refusal(low, high, f"look like metres, though the map would be disparity {stated.reason}")
    # Stereo cameras write disparity into the same integers as depth cameras write millimetres.
    if is_integer and not is_named and not numbers.support_metres:
        raise _refusal(low, high, "may be millimetres, or disparity of 16 bits")
    found = stated or numbers.statement()
    if found is None:
        raise _refusal(low, high, "may be metres or disparity")
    if found.format == "metric" and numbers.median > _MAX_MEDIAN_M:
        raise DepthError(
            f"the depth map would have a median of {numbers.median:.4g} m: set depth_unit to mm, cm or another unit, "
            "or to m if that is right"
        )
    return found


def _refusal(low: float, high: float, problem: str) -> DepthError:
    return DepthError(
        f"the values of the depth map ({low:.4g} to {high:.4g}) {problem}: set depth_format to metric (metres; "
        "integers are millimetres unless depth_unit is set), "
        "relative (0 is near, 1 is far) or inverse-relative (disparity, larger is nearer)"
    )


def _is_normalised(values: Values, low: float, high: float, *, is_integer: bool) -> bool:
    """Report whether the values run from the least to the largest value of [0, 1], of 8 bits or of 16 bits."""
    if low == high:
        return False
    if is_integer:
        share = high / MAX_16_BIT
        # Zero may be an unknown pixel of a camera, so that it counts only beside the very largest value.
        nearest = float(np.min(values, where=values > 0, initial=np.inf)) / MAX_16_BIT
        return share <= 1 and ((low <= 0 and share > _FULL) or (nearest < _NEAR_ZERO and share > _NEAR_ONE))
    is_unit = low < _NEAR_ZERO and _NEAR_ONE < high < _ABOVE_ONE
    return is_unit or (low == 0 and high in (_LARGEST_8_BIT, MAX_16_BIT))


def _has_negative(values: Values) -> bool:
    """Report whether values are negative, other than one that marks unknown pixels."""
    negative = values[(values < 0) & np.isfinite(values)]
    return len(negative) > 0 and float(negative.min()) != float(negative.max())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Numbers:
    """Facts about the numbers of a map.

    Attributes:
        median: Median of the known values that are no sky.
        is_flat: Whether all known values are the same.
        has_sky: Whether there is a far sky.
        rest: Fraction of the variance that one plane over the whole map does not explain: zero for made-up ramps, and
            for hardly any photograph.
        planes: Format in which surfaces are planar; empty if it is neither.
        is_upside_down: Whether these surfaces mostly come nearer upwards in that format.
        nearer: Part of the image that is nearer if the numbers are metres: `top`, `bottom`, or empty.
    """

    median: float
    is_flat: bool
    has_sky: bool
    rest: float
    planes: str
    is_upside_down: bool
    nearer: str

    @classmethod
    def of(cls, values: Values) -> _Numbers:
        """Look at the numbers of a map."""
        positive = np.where((values > 0) & (values < SKY), values, np.float32(np.nan))
        farthest = float(np.nanmax(positive, initial=0))
        has_sky = _has_sky(values, farthest)
        grid = _reduced(positive)
        metric, disparity = _plane_votes(grid)
        num_needed = max(_MIN_VOTES, _MAJORITY * (metric.number + disparity.number))
        planes = "metric" if metric.number >= num_needed else ""
        if disparity.number >= num_needed:
            planes = "inverse-relative"
        return cls(
            median=0.0 if np.isnan(grid).all() else float(np.nanmedian(grid)),
            is_flat=not has_sky and farthest == float(np.nanmin(positive, initial=np.inf)),
            has_sky=has_sky,
            rest=_rest_of_plane(grid),
            planes=planes,
            is_upside_down=(metric if planes == "metric" else disparity).is_upside_down,
            nearer=_nearer_part(grid),
        )

    @property
    def contradict_metres(self) -> bool:
        """Whether a map that would be metric looks like disparity."""
        if self.planes == "inverse-relative":
            return self.rest > _EXACT_RAMP
        return not self.planes and not self.has_sky and self.nearer == "top"

    @property
    def support_metres(self) -> bool:
        """Whether numbers that may be millimetres look like them: they are flat, or surfaces are planar in metres."""
        return self.is_flat or (self.planes == "metric" and not self.is_upside_down and self.nearer != "top")

    def statement(self) -> Statement | None:
        """Return what the numbers clearly are; None where they are not clear."""
        if self.is_flat:
            return Statement(format="metric", reason="since it is flat, and has no order")
        # Most photographs show ground, which comes nearer towards the bottom.
        if self.planes and self.is_upside_down:
            return None
        if self.planes == "metric" and self.nearer != "top":
            return Statement(format="metric", reason="since surfaces are planar in the inverse of its values")
        if self.planes == "inverse-relative" and self.nearer != "bottom" and not self.has_sky and self.rest > _RAMP:
            return Statement(format="inverse-relative", reason="since surfaces are planar in its values")
        if not self.planes and self.has_sky and self.nearer != "top":
            return Statement(format="metric", reason="since it has a far sky")
        return None


def _has_sky(values: Values, farthest: float) -> bool:
    """Report whether infinite or huge values lie in the upper half, with nothing between them and the scene."""
    rows, _ = np.nonzero(values >= SKY)
    return len(rows) > _MIN_SKY * values.size and farthest < _SKY_GAP * SKY and float(rows.mean()) < len(values) / 2


def _nearer_part(grid: Values) -> str:
    """Return which of the upper and the lower quarter has clearly smaller values."""
    quarter = max(1, len(grid) // 4)
    top, bottom = (part[~np.isnan(part)] for part in (grid[:quarter], grid[-quarter:]))
    if not len(top) or not len(bottom):
        return ""
    ratio = float(np.median(top) / np.median(bottom))
    return "bottom" if ratio > _CONTRARY else "top" if ratio < 1 / _CONTRARY else ""


def _rest_of_plane(grid: Values) -> float:
    """Return the fraction of the variance that one plane over all known cells does not explain."""
    y, x = np.nonzero(~np.isnan(grid))
    known = grid[y, x].astype(np.float64)[None]
    if len(x) <= 3 or known.min() == known.max():
        return 0.0
    return float(_residuals(known, np.stack([np.ones(len(x)), x, y], axis=1))[0])


@dataclass(slots=True)
class _Votes:
    """Windows that are planes in one format.

    Attributes:
        number: Number of all of them.
        num_ceilings: Number of those that come nearer upwards, like a ceiling.
    """

    number: int = 0
    num_ceilings: int = 0

    def add(self, disparity: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        """Count the windows, (number, cells), whose values are disparity."""
        across, down = disparity @ x, disparity @ y
        self.number += len(disparity)
        self.num_ceilings += int(np.count_nonzero(-down > np.abs(across)))

    @property
    def is_upside_down(self) -> bool:
        """Whether nearly all are ceilings, as in few photographs, and in those whose floors were mistaken for them."""
        return self.num_ceilings > _MAX_CEILINGS * self.number


def _plane_votes(grid: Values) -> tuple[_Votes, _Votes]:
    """Count the windows that are planes if the numbers are metres, and those that are if they are disparity.

    On a plane in space, disparity is affine in the pixel's coordinates, and depth is its inverse: n . z (x, y, 1) = d
    gives 1 / z = n . (x, y, 1) / d. So a window counts in which a plane fits one of `values` and `1 / values` much
    better than the other, and fits it as well as a quadratic: curved surfaces fit neither, and say nothing.

    Args:
        grid: (height, width), NaN where unknown; windows with unknown cells are left out.
    """
    metric, disparity = _Votes(), _Votes()
    for share in _WINDOW_SHARES:
        side_y, side_x = (max(6, round(side / share)) for side in grid.shape)
        if side_y > grid.shape[0] or side_x > grid.shape[1]:
            continue
        windows = np.lib.stride_tricks.sliding_window_view(grid, (side_y, side_x))
        windows = windows[:: max(1, side_y // 2), :: max(1, side_x // 2)].reshape(-1, side_y * side_x)
        windows = windows[~np.isnan(windows).any(axis=1)].astype(np.float64)
        windows = windows[windows.max(axis=1) > _MIN_RATIO * windows.min(axis=1)]
        if not len(windows):
            continue
        y, x = (axis.ravel() for axis in np.mgrid[-1 : 1 : side_y * 1j, -1 : 1 : side_x * 1j])
        plane = np.stack([np.ones_like(x), x, y], axis=1)
        quadratic = np.concatenate([plane, np.stack([x * x, x * y, y * y], axis=1)], axis=1)
        inverse = 1 / windows
        rest, rest_of_inverse = _residuals(windows, plane), _residuals(inverse, plane)
        for votes, values, best, other in (
            (disparity, windows, rest, rest_of_inverse),
            (metric, inverse, rest_of_inverse, rest),
        ):
            is_plane = (best < _MAX_RESIDUAL) & (best < _CLEAR * _residuals(values, quadratic))
            votes.add(values[is_plane & (best * _CLEAR < other)], x, y)
    return metric, disparity


def _residuals(windows: NDArray[np.float64], basis: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the unexplained fraction of the variance of each window after a least-squares fit, at least 1e-10."""
    centred = windows - windows.mean(axis=1, keepdims=True)
    q, _ = np.linalg.qr(basis)
    rest = centred - (centred @ q) @ q.T
    fractions: NDArray[np.float64] = np.maximum((rest**2).sum(axis=1) / (centred**2).sum(axis=1), 1e-10)
    return fractions


def _reduced(positive: Values) -> Values:
    """Return the map reduced to at most `_GRID` cells a side, by medians; NaN where most of a cell is unknown."""
    factor = max(1, -(-max(positive.shape) // _GRID))
    height, width = (side // factor for side in positive.shape)
    if not height or not width:
        return positive
    blocks = positive[: height * factor, : width * factor].reshape(height, factor, width, factor)
    cells: Values = blocks.transpose(0, 2, 1, 3).reshape(height, width, -1)
    few = np.isnan(cells).mean(axis=2) > 0.5
    cells = np.where(few[..., None], 1, cells)
    return np.where(few, np.float32(np.nan), np.nanmedian(cells, axis=2)).astype(np.float32)

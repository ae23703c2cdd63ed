"""The options of one prediction: the same names, ranges and defaults behind every door."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from sharp_cog.config.output_formats import DEFAULT_FORMAT, OUTPUT_FORMATS
from sharp_cog.errors import OptionError
from sharp_cog.text import plain, quoted

AXES = ("auto", "opencv", "opengl")
SPZ_VERSIONS = (3, 4)

ESTIMATORS = ("depth-pro", "depth-anything-v2-metric")
"""Networks other than SHARP that tell depth: `sharp_cog.depth.estimators`."""
DEPTH_FORMATS = ("auto", "metric", "relative", "inverse-relative")
DEPTH_MODES = ("ratio", "fixed", "align")
DEPTH_FITS = ("auto", "none", "median", "affine")

BACK_SURFACE_FACTOR_RANGE = (1.0, 100.0)
DEPTH_SCALE_RANGE = (1e-3, 1e3)
DEPTH_OFFSET_RANGE = (-100.0, 100.0)
FOCAL_LENGTH_PX_RANGE = (1.0, 1_000_000.0)
FOCAL_LENGTH_MM_RANGE = (1.0, 5_000.0)
MAX_GAUSSIANS_RANGE = (1, 1_000_000_000)
MIN_OPACITY_RANGE = (0.0, 1.0)
SCALE_RANGE = (1e-6, 1e6)

CHOICES: dict[str, tuple[str | int, ...]] = {
    "output_format": tuple(OUTPUT_FORMATS),
    "axes": AXES,
    "spz_version": SPZ_VERSIONS,
    "depth_format": DEPTH_FORMATS,
    "depth_mode": DEPTH_MODES,
    "depth_fit": DEPTH_FITS,
}
"""Of the options that have them, by name."""
RANGES: dict[str, tuple[tuple[float, float], str]] = {
    "max_gaussians": (MAX_GAUSSIANS_RANGE, "Gaussians"),
    "min_opacity": (MIN_OPACITY_RANGE, "(1 is opaque)"),
    "scale": (SCALE_RANGE, "(1 keeps metres)"),
    "back_surface_factor": (BACK_SURFACE_FACTOR_RANGE, "(1 is no distance)"),
    "depth_scale": (DEPTH_SCALE_RANGE, "(1 changes nothing)"),
    "depth_offset": (DEPTH_OFFSET_RANGE, "metres"),
    "focal_length_px": (FOCAL_LENGTH_PX_RANGE, "pixels"),
    "focal_length_mm": (FOCAL_LENGTH_MM_RANGE, "millimetres"),
}
"""Least and largest value of the others that are numbers, and their unit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputOptions:
    """What of a splat is written, and how.

    Attributes:
        output_format: One of `OUTPUT_FORMATS`.
        axes: `opencv` (x right, y down, z ahead), `opengl` (x right, y up, z back), or `auto`: what the format asks
            for, which is OpenCV's but for spz and glb.
        max_gaussians: Keep at most so many: those that add most to the photograph's own view. None keeps all.
        min_opacity: Drop Gaussians that are less opaque.
        scale: Factor on all lengths, about the photograph's camera.
        center: Move the scene so that its centre, the median position, becomes the origin. Otherwise the photograph's
            camera is the origin.
        spz_version: Of the format spz: 3, which most viewers read, or 4.

    Raises:
        OptionError: A value is out of its range, or the format cannot have it.
    """

    output_format: str = DEFAULT_FORMAT
    axes: str = "auto"
    max_gaussians: int | None = None
    min_opacity: float = 0.0
    scale: float = 1.0
    center: bool = False
    spz_version: int = 3

    def __post_init__(self) -> None:
        for option in fields(self):
            _check(option.name, getattr(self, option.name))
        format_ = OUTPUT_FORMATS[self.output_format]
        fixed = format_.axes if format_.has_fixed_axes else None
        if fixed and self.axes not in ("auto", fixed):
            raise OptionError(
                f"axes is {self.axes!r}, but {self.output_format} always has {fixed}: leave it out, or choose another "
                "output_format"
            )
        if self.center and format_.has_fixed_origin:
            raise OptionError(
                f"center is given, but in {self.output_format} the photograph's camera is the origin: leave it out, or "
                "choose another output_format"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Builds options from a transport's mapping; None and empty strings count as not given.

        Numbers and flags may arrive as text, as forms and environment variables send them.

        Raises:
            OptionError: An unknown name, a value of the wrong type, or a value out of its range.
        """
        known = {field.name: str(field.type) for field in fields(cls)}
        given = {name: value for name, value in values.items() if value is not None and value != ""}
        unknown = sorted(given.keys() - known.keys())
        if unknown:
            named = ", ".join(plain(name) or quoted(name) for name in unknown[:_MAX_NAMED])
            more = f" and {len(unknown) - _MAX_NAMED} more" if len(unknown) > _MAX_NAMED else ""
            raise OptionError(f"unknown option {named}{more}: choose from {', '.join(sorted(known))}")
        for name, value in given.items():
            type_ = known[name].removesuffix(" | None")
            if type_ in _CONVERTERS:
                given[name] = _CONVERTERS[type_](name, value)
        return cls(**given)


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictOptions(OutputOptions):
    """Options of one prediction, with those of what is written.

    Attributes:
        focal_length_px: Focal length in pixels of the picture as it is shown (after EXIF rotation).
        focal_length_mm: The same as a 35 mm equivalent in millimetres; not together with `focal_length_px`.
            Without either, EXIF decides, and without EXIF 30 mm.
        depth_format: What the numbers of a depth map mean: `metric`, `relative`, `inverse-relative`, or `auto`; as
            `sharp_cog.depth.maps.decode`.
        depth_mode: How the map takes the place of SHARP's own depth: `ratio`, `fixed` or `align`; as
            `sharp_cog.model.external_depth.DepthUse`, like the next four.
        back_surface_factor: Above 1 it selects `fixed`.
        depth_fit: `none`, `median`, `affine`, or `auto`: none for a metric map, affine for the others.
        depth_scale: Factor on the depth, after the fit.
        depth_offset: Added after that, in metres.
        save_internal_depth: Keep SHARP's own depth in the prediction.

    Raises:
        OptionError: A value is out of its range, the format cannot have it, or two of them exclude each other.
    """

    focal_length_px: float | None = None
    focal_length_mm: float | None = None
    depth_format: str = "auto"
    depth_mode: str = "ratio"
    back_surface_factor: float = 1.0
    depth_fit: str = "auto"
    depth_scale: float = 1.0
    depth_offset: float = 0.0
    save_internal_depth: bool = False

    def __post_init__(self) -> None:
        OutputOptions.__post_init__(self)
        if self.back_surface_factor > 1 and self.depth_mode == "align":
            raise OptionError(
                f"back_surface_factor is {self.back_surface_factor:g} and depth_mode 'align', which has SHARP's own "
                "back surface: leave one of them out"
            )
        if self.focal_length_px is not None and self.focal_length_mm is not None:
            raise OptionError(
                f"focal_length_px={self.focal_length_px} and focal_length_mm={self.focal_length_mm} are both given: "
                "give only one of them"
            )


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise OptionError(f"{name} is {quoted(value)}: give a number")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise OptionError(f"{name} is {quoted(value)}: give a number") from None


def _whole_number(name: str, value: object) -> int:
    number = _number(name, value)
    if not number.is_integer():
        raise OptionError(f"{name} is {quoted(value)}: give a whole number")
    return int(number)


def _flag(name: str, value: object) -> bool:
    flags = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    flag = flags.get(value.strip().lower()) if isinstance(value, str) else None
    if flag is None:
        raise OptionError(f"{name} is {quoted(value)}: give true or false")
    return flag


_MAX_NAMED = 3
"""Unknown options that an error names; the rest is counted."""
_CONVERTERS: dict[str, Any] = {"float": _number, "int": _whole_number, "bool": _flag}
"""By the type of the field, as it is written."""


def _check(name: str, value: Any) -> None:
    """Checks a value against what the option may be."""
    choices = CHOICES.get(name)
    if choices is not None and value not in choices:
        raise OptionError(f"{name} is {quoted(value)}: choose one of {', '.join(map(str, choices))}")
    if name in RANGES and value is not None:
        (low, high), unit = RANGES[name]
        if not (math.isfinite(value) and low <= value <= high):
            raise OptionError(f"{name} is {value}: give a number from {low:g} to {high:g} {unit}")

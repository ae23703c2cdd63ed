"""The options of one prediction: the same names, ranges and defaults behind every door."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from sharp_cog.errors import OptionError

OUTPUT_FORMATS = ("ply", "apple_ply")
FOCAL_LENGTH_PX_RANGE = (1.0, 1_000_000.0)
FOCAL_LENGTH_MM_RANGE = (1.0, 5_000.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictOptions:
    """Options of one prediction.

    Attributes:
        focal_length_px: Focal length in pixels of the picture as it is shown (after EXIF rotation).
        focal_length_mm: The same as a 35 mm equivalent in millimetres; not together with `focal_length_px`.
            Without either, EXIF decides, and without EXIF 30 mm.
        output_format: One of `OUTPUT_FORMATS`.

    Raises:
        OptionError: A value is out of its range, or both focal lengths are given.
    """

    focal_length_px: float | None = None
    focal_length_mm: float | None = None
    output_format: str = "ply"

    def __post_init__(self) -> None:
        _check_range("focal_length_px", self.focal_length_px, FOCAL_LENGTH_PX_RANGE, "pixels")
        _check_range("focal_length_mm", self.focal_length_mm, FOCAL_LENGTH_MM_RANGE, "millimetres")
        if self.focal_length_px is not None and self.focal_length_mm is not None:
            raise OptionError(
                f"focal_length_px={self.focal_length_px} and focal_length_mm={self.focal_length_mm} are both given: "
                "give only one of them"
            )
        if self.output_format not in OUTPUT_FORMATS:
            raise OptionError(f"output_format is {self.output_format!r}: choose one of {', '.join(OUTPUT_FORMATS)}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> PredictOptions:
        """Builds options from a transport's mapping; None and empty strings count as not given.

        Numbers may arrive as text, as forms and environment variables send them.

        Raises:
            OptionError: An unknown name, a value of the wrong type, or a value out of its range.
        """
        known = {field.name for field in fields(cls)}
        given = {name: value for name, value in values.items() if value is not None and value != ""}
        unknown = sorted(given.keys() - known)
        if unknown:
            raise OptionError(f"unknown option {', '.join(unknown)}: choose from {', '.join(sorted(known))}")
        for name in ("focal_length_px", "focal_length_mm"):
            if name in given:
                given[name] = _number(name, given[name])
        return cls(**given)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise OptionError(f"{name} is {value!r}: give a number")
    try:
        return float(value)
    except ValueError:
        raise OptionError(f"{name} is {value!r}: give a number") from None


def _check_range(name: str, value: float | None, limits: tuple[float, float], unit: str) -> None:
    low, high = limits
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        raise OptionError(f"{name} is {value}: give a number from {low:g} to {high:g} {unit}")

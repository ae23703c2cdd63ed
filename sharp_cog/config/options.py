"""Options of one prediction: one table for all frontends, with names, ranges, defaults and help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from sharp_cog.config.output_formats import DEFAULT_FORMAT, LEVELS_NAME, OUTPUT_FORMATS
from sharp_cog.config.parameters import FRONTENDS, MAX_NUMBER, check, parameter, parameters, parse
from sharp_cog.errors import OptionError
from sharp_cog.text import plain, quoted, read_number

FOCAL_LENGTH_PX_RANGE = (1.0, 1_000_000.0)
"""Least and largest focal length in pixels."""
FOCAL_LENGTH_MM_RANGE = (1.0, 5_000.0)
"""Least and largest focal length as a 35 mm equivalent in millimetres."""
FOV_RANGE = (1.0, 170.0)
"""Least and largest horizontal field of view in degrees."""
AXES = {  # Each with its meaning, like the choices below.
    "auto": "the format's usual axes, opengl for spz and glb, opencv for the others",
    "opencv": "x right, y down, z forward",
    "opengl": "x right, y up, z backward",
}
_DEPTH_FORMATS = {
    "auto": "what the file and its values clearly say, else an error",
    "metric": "metres",
    "relative": "0 (near) to 1 (far), mapped to 1 to 10 m",
    "inverse-relative": "disparity, larger is nearer, its median mapped to 3 m",
}
DEPTH_FORMATS = tuple(_DEPTH_FORMATS)
"""Meanings of a depth map's values, by name."""

DEPTH_UNITS_M = {"m": 1.0, "mm": 0.001, "cm": 0.01, "kitti": 1 / 256, "tum": 1 / 5000}
"""Metres in each unit of a depth map that has a name."""
_MIN_UNIT_M = 1e-9
"""Least unit of a depth map in metres."""


def _is_depth_unit(value: object) -> bool:
    """Report whether a value is a unit of depth, or a positive number of metres."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return False
    try:
        return value in ("auto", *DEPTH_UNITS_M) or _MIN_UNIT_M <= _number(value) <= MAX_NUMBER
    except (ValueError, OverflowError):
        return False


def _number(value: str | float) -> float:
    return read_number(value) if isinstance(value, str) else float(value)


_NOT_COG = tuple(frontend for frontend in FRONTENDS if frontend != "Cog")
_MAX_NAMED = 3
"""Unknown options that an error names; it counts the rest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputOptions:
    """Options of a written splat.

    Raises:
        OptionError: A value is out of its range, or the format does not allow it.
    """

    output_format: str = parameter(
        DEFAULT_FORMAT,
        "file format: ply for any viewer, spz and sog are small, html is a web page, mp4 a video",
        choices={format_.name: format_.description for format_ in OUTPUT_FORMATS.values()},
        aliases=("format",),
    )
    axes: str = parameter(
        "auto", "coordinate axes; if a viewer shows the scene upside down, try opengl or opencv", choices=AXES
    )
    max_gaussians: int | None = parameter(
        None,
        "merge neighbouring Gaussians until at most this many are left; the picture stays the same",
        limits=(1, 1_000_000_000),
        unit="Gaussians",
        metavar="N",
    )
    min_opacity: float = parameter(
        0.0,
        "drop Gaussians less opaque than this: 0 keeps all, 0.1 drops haze, 1 keeps opaque ones",
        limits=(0.0, 1.0),
        unit="(1 is opaque)",
        metavar="P",
    )
    scale: float = parameter(
        1.0,
        "factor on all lengths, about the photograph's camera",
        limits=(1e-6, 1e6),
        unit="(1 keeps metres)",
        metavar="S",
        frontends=_NOT_COG,
    )
    center: bool = parameter(
        False,
        "move the origin from the photograph's camera to the median position of the scene",
        frontends=_NOT_COG,
    )
    spz_version: int = parameter(
        3,
        "version of the format spz",
        choices={2: "the oldest viewers read it", 3: "most viewers read it", 4: "needs a newer viewer"},
        frontends=_NOT_COG,
    )
    sh_degree: int | None = parameter(
        None,
        "degree of the spherical harmonics to write, by default the splat's own: a lower one drops some, a higher one "
        "adds zeros (the original viewer of .ply needs 3)",
        limits=(0, 4),
        metavar="N",
        frontends=_NOT_COG,
    )
    normals: bool = parameter(
        False,
        "write normals into a .ply, all of them zeros, for the oldest viewers",
        frontends=_NOT_COG,
    )
    point_colors: bool = parameter(
        False,
        "write red, green and blue into a .ply too, for programs that show points or meshes",
        frontends=_NOT_COG,
    )
    cameras_json: bool = parameter(
        False,
        "also write the photograph's camera beside a .ply, as NAME.cameras.json in the layout of INRIA's cameras.json",
        frontends=("command line", "Python"),
    )
    glb_compression: str = parameter(
        "none",
        "compression inside of the format glb",
        choices={"none": "plain numbers", "spz": "a .spz inside, a quarter of the size, for CesiumJS"},
        frontends=_NOT_COG,
    )

    lod: int | None = parameter(
        None,
        "levels of detail of a sog whose output is named lod-meta.json, 4 by default: each has a quarter of the "
        "Gaussians of the one before",
        limits=(2, 8),
        unit="levels",
        metavar="N",
        frontends=("command line", "Python"),
    )

    def __post_init__(self) -> None:
        for about in parameters(type(self)):
            check(about, about.name, getattr(self, about.name), OptionError)
        format_ = OUTPUT_FORMATS[self.output_format]
        # An option that the format would ignore is refused: the file would not be what was asked for.
        fixed = format_.axes if format_.has_fixed_axes else None
        if fixed and self.axes not in ("auto", fixed):
            raise OptionError(
                f"axes is {self.axes!r}, but {self.output_format} always has {fixed}: leave it out, or choose another "
                "output_format"
            )
        if self.cameras_json and not format_.suffix.endswith(".ply"):
            raise OptionError(
                f"cameras_json is given, but {self.output_format} is no .ply: leave it out, or choose another "
                "output_format"
            )
        if self.lod is not None and self.output_format != "sog":
            raise OptionError(
                f"lod is {self.lod}, but {self.output_format} has no levels of detail: leave it out, or choose "
                f"output_format sog and name the output {LEVELS_NAME}"
            )
        if self.sh_degree is not None and self.sh_degree > format_.max_degree:
            raise OptionError(
                f"sh_degree is {self.sh_degree}, but {self.output_format} holds degrees up to {format_.max_degree}: "
                "lower it, or choose another output_format"
            )
        for name in ("normals", "point_colors"):
            if getattr(self, name) and self.output_format != "ply":
                raise OptionError(
                    f"{name} is given, but {self.output_format} has no place for them: leave it out, or choose "
                    "output_format ply"
                )
        if self.center and format_.has_fixed_origin:
            raise OptionError(
                f"center is given, but in {self.output_format} the photograph's camera is the origin: leave it out, or "
                "choose another output_format"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build options from the mapping that a frontend received.

        Args:
            values: Values by name. Numbers and booleans may be text, as in forms; None and empty text are not given.

        Raises:
            OptionError: A name is unknown, or a value has the wrong type or is out of its range.
        """
        known = {about.name: about for about in parameters(cls)}
        # Forms send an empty text for every field that was left out.
        given = {name: value for name, value in values.items() if value is not None and value != ""}
        unknown = sorted(given.keys() - known.keys())
        if unknown:
            # Callers of a service choose the names: a thousand of them, or control characters, must not fill the log.
            named = ", ".join(plain(name) or quoted(name) for name in unknown[:_MAX_NAMED])
            more = f" and {len(unknown) - _MAX_NAMED} more" if len(unknown) > _MAX_NAMED else ""
            raise OptionError(f"unknown option {named}{more}: choose from {', '.join(sorted(known))}")
        return cls(**{name: parse(known[name], name, value, OptionError) for name, value in given.items()})


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictOptions(OutputOptions):
    """Options of one prediction and of the splat that is written.

    Raises:
        OptionError: A value is out of its range, the format does not allow it, or two options exclude each other.
    """

    focal_length_px: float | None = parameter(
        None,
        "focal length in pixels of the upright image; by default from EXIF, else 30 mm equivalent",
        limits=FOCAL_LENGTH_PX_RANGE,
        unit="pixels",
        metavar="PX",
        aliases=("f_px",),
    )
    focal_length_mm: float | None = parameter(
        None,
        "focal length as a 35 mm equivalent in millimetres, instead of the one in pixels",
        limits=FOCAL_LENGTH_MM_RANGE,
        unit="millimetres",
        metavar="MM",
    )
    fov: float | None = parameter(
        None,
        "horizontal field of view of the upright image in degrees, instead of a focal length",
        limits=FOV_RANGE,
        unit="degrees",
        metavar="DEGREES",
    )
    depth_from: str = parameter(
        "auto",
        "source of the depth if no map is given",
        choices={
            "auto": "the photograph itself for the model lift, none for SHARP",
            "embedded": "the photograph itself, such as a portrait of a phone or a stereo pair",
        },
    )
    depth_format: str = parameter(
        "auto", "meaning of the depth map's values: metres, 0 (near) to 1 (far), or disparity", choices=_DEPTH_FORMATS
    )
    depth_unit: str = parameter(
        "auto",
        "unit of a metric depth map: m, mm, cm, kitti (1/256 m), tum (1/5000 m), or a number",
        accepts=_is_depth_unit,
        remedy=f"give {', '.join(DEPTH_UNITS_M)}, or a positive number of metres per unit",
        metavar="UNIT",
    )
    depth_mode: str = parameter(
        "ratio",
        "use of the depth map: ratio and fixed take its depth, align takes only its scale",
        choices={
            "ratio": "the map, and behind it the back surface at SHARP's own ratio of back to front",
            "fixed": "the map, and behind it the back surface at the back surface factor times the map",
            "align": "SHARP's monodepth in all its detail, brought to the map by a network of the checkpoint",
        },
    )
    back_surface_factor: float = parameter(
        1.0,
        "depth of the hidden back surface, as a multiple of the map; above 1 selects mode fixed",
        limits=(1.0, 100.0),
        unit="(1 is no distance)",
        metavar="F",
    )
    depth_fit: str = parameter(
        "auto",
        "fit of the depth map to SHARP's monodepth: by one factor, or by scale and shift of disparity",
        choices={
            "auto": "none for a metric map, affine for any other",
            "none": "no fit",
            "median": "one factor",
            "affine": "scale and shift of disparity",
        },
    )
    depth_scale: float = parameter(
        1.0,
        "factor on the depth map, after the fit",
        limits=(1e-3, 1e3),
        unit="(1 changes nothing)",
        metavar="S",
    )
    depth_offset: float = parameter(
        0.0, "metres to add to the depth map, after the factor", limits=(-100.0, 100.0), unit="metres", metavar="M"
    )
    save_internal_depth: bool = parameter(
        False,
        "also return SHARP's monodepth, the front and the back surface in metres",
        frontends=("command line", "Python", "HTTP", "Modal"),
    )

    def __post_init__(self) -> None:
        # Not `super()`: a dataclass with slots replaces the class that the form without arguments refers to.
        OutputOptions.__post_init__(self)
        object.__setattr__(self, "depth_unit", str(self.depth_unit))  # A request may hold a number.
        if self.depth_unit != "auto" and self.depth_format not in ("auto", "metric"):
            raise OptionError(
                f"depth_unit is {self.depth_unit!r} and depth_format {self.depth_format!r}, which has no unit: leave "
                "one of them out"
            )
        if self.back_surface_factor > 1 and self.depth_mode == "align":
            raise OptionError(
                f"back_surface_factor is {self.back_surface_factor:g} and depth_mode 'align', which has SHARP's own "
                "back surface: leave one of them out"
            )
        lengths = {name: getattr(self, name) for name in ("focal_length_px", "focal_length_mm", "fov")}
        given = [f"{name}={value}" for name, value in lengths.items() if value is not None]
        if len(given) > 1:
            named = f"{', '.join(given[:-1])} and {given[-1]} are {'both' if len(given) == 2 else 'all'} given"
            raise OptionError(f"{named}: give only one of them")

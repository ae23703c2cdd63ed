"""Options of a prediction, as frontends send them: numbers, or text."""

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharp_cog.config.options import FOCAL_LENGTH_MM_RANGE, FOCAL_LENGTH_PX_RANGE, FOV_RANGE, PredictOptions
from sharp_cog.config.output_formats import OUTPUT_FORMATS
from sharp_cog.errors import OptionError


def test_without_values_the_options_are_the_defaults() -> None:
    assert PredictOptions.from_mapping({}) == PredictOptions()


def test_none_and_empty_text_count_as_not_given() -> None:
    values = {"focal_length_px": None, "focal_length_mm": "", "output_format": ""}
    assert PredictOptions.from_mapping(values) == PredictOptions()


@settings(max_examples=25)
@given(st.floats(*FOCAL_LENGTH_PX_RANGE))
def test_a_number_as_text_is_the_same_number(focal_length_px: float) -> None:
    expected = PredictOptions(focal_length_px=focal_length_px)
    assert PredictOptions.from_mapping({"focal_length_px": repr(focal_length_px)}) == expected
    assert PredictOptions.from_mapping({"focal_length_px": focal_length_px}) == expected


@pytest.mark.parametrize(
    ("name", "limits"),
    [("focal_length_px", FOCAL_LENGTH_PX_RANGE), ("focal_length_mm", FOCAL_LENGTH_MM_RANGE), ("fov", FOV_RANGE)],
)
def test_the_ends_of_a_range_are_accepted_and_anything_beyond_is_refused(
    name: str, limits: tuple[float, float]
) -> None:
    low, high = limits
    for value in limits:
        assert getattr(PredictOptions.from_mapping({name: value}), name) == value
    beyond = [math.nextafter(low, -math.inf), math.nextafter(high, math.inf), 0, -1, math.nan, math.inf, "1e999"]
    for outside in beyond:
        with pytest.raises(OptionError, match=rf"{name} is .*: give a number from {low:g} to "):
            PredictOptions.from_mapping({name: outside})


@pytest.mark.parametrize("value", ["wide", "1,5", "0x10", True, [28], {"mm": 28}, b"28"])
def test_a_value_that_is_not_a_number_is_refused(value: object) -> None:
    with pytest.raises(OptionError, match=r"focal_length_mm is .*: give a number"):
        PredictOptions.from_mapping({"focal_length_mm": value})


def test_two_focal_lengths_are_refused() -> None:
    with pytest.raises(OptionError, match=r"focal_length_px=900.0 and focal_length_mm=28.0 are both given"):
        PredictOptions.from_mapping({"focal_length_px": "900", "focal_length_mm": "28"})
    with pytest.raises(OptionError, match=r"focal_length_px=9.0, focal_length_mm=28.0 and fov=60.0 are all given"):
        PredictOptions(focal_length_px=9.0, focal_length_mm=28.0, fov=60.0)


def test_an_unknown_option_is_refused_with_the_names_of_the_known_ones() -> None:
    with pytest.raises(OptionError) as caught:
        PredictOptions.from_mapping({"focal_lenght_px": 900})
    assert "focal_lenght_px" in str(caught.value)
    for field in dataclasses.fields(PredictOptions):
        assert field.name in str(caught.value)


def test_an_error_names_only_a_few_of_many_unknown_options() -> None:
    with pytest.raises(OptionError, match=r"^unknown option a0, a1, a10 and 97 more: choose from axes, "):
        PredictOptions.from_mapping({f"a{number}": 1 for number in range(100)})
    with pytest.raises(OptionError) as caught:
        PredictOptions.from_mapping({"\ud800\n": 1, "x" * 10**6: 1})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("output_format", ["PLY", "obj", "ply "])
def test_an_unknown_format_is_refused_with_the_names_of_the_known_ones(output_format: str) -> None:
    with pytest.raises(OptionError, match="choose one of " + ", ".join(OUTPUT_FORMATS)):
        PredictOptions(output_format=output_format)


def test_options_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PredictOptions().output_format = "apple_ply"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"max_gaussians": "5000"}, PredictOptions(max_gaussians=5000)),
        ({"max_gaussians": 5000.0}, PredictOptions(max_gaussians=5000)),
        ({"min_opacity": "0.25"}, PredictOptions(min_opacity=0.25)),
        ({"center": "true", "scale": "2"}, PredictOptions(center=True, scale=2.0)),
        ({"center": "off"}, PredictOptions()),
        ({"center": 1}, PredictOptions(center=True)),
        ({"output_format": "spz", "spz_version": "4"}, PredictOptions(output_format="spz", spz_version=4)),
        ({"axes": "opengl"}, PredictOptions(axes="opengl")),
    ],
)
def test_values_are_accepted_as_text_and_as_themselves(values: dict[str, object], expected: PredictOptions) -> None:
    assert PredictOptions.from_mapping(values) == expected
    assert PredictOptions.from_mapping(dataclasses.asdict(expected)) == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_gaussians": "0"}, "max_gaussians is 0: give a number from 1 to 1000000000 Gaussians"),
        ({"max_gaussians": "1.5"}, "max_gaussians is '1.5': give a whole number"),
        ({"min_opacity": 1.01}, "min_opacity is 1.01: give a number from 0 to 1"),
        ({"min_opacity": -0.1}, "min_opacity is -0.1"),
        ({"scale": 0}, "scale is 0.0: give a number from 1e-06"),
        ({"center": "perhaps"}, "center is 'perhaps': give true or false"),
        ({"axes": "unity"}, "axes is 'unity': choose one of auto, opencv, opengl"),
        ({"spz_version": 5}, "spz_version is 5: choose one of 2, 3, 4"),
        ({"output_format": "html", "axes": "opengl"}, "axes is 'opengl', but html always has opencv"),
        ({"output_format": "html", "center": True}, "center is given, but in html"),
        ({"depth_mode": "align", "back_surface_factor": 2}, "back_surface_factor is 2 and depth_mode 'align'"),
    ],
)
def test_a_bad_option_is_refused_with_its_value_and_a_remedy(values: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        PredictOptions.from_mapping(values)


def test_axes_that_a_format_has_anyway_may_be_named() -> None:
    assert PredictOptions(output_format="glb", axes="opengl").axes == "opengl"
    assert PredictOptions(output_format="html", axes="opencv").axes == "opencv"


@pytest.mark.parametrize("name", [option.name for option in dataclasses.fields(PredictOptions)])
@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, 10**5000, [[]] * 1000, {"a": "\ud800"}, b"\xff", float("nan"), -(2**70)],
    ids=["text", "integer", "list", "object", "bytes", "nan", "negative"],
)
def test_a_monstrous_value_is_refused_in_a_short_line(name: str, value: object) -> None:
    with pytest.raises(OptionError) as caught:
        PredictOptions.from_mapping({name: value})
    message = str(caught.value)
    assert message.startswith(f"{name} is ")
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize("unit", ["auto", "m", "mm", "cm", "kitti", "tum", "0.001", 0.5, "1e-4"])
def test_the_unit_of_depth_is_a_name_or_a_number(unit: object) -> None:
    assert PredictOptions.from_mapping({"depth_unit": unit}).depth_unit == str(unit)


@pytest.mark.parametrize("unit", ["feet", "0", "-1", "nan", "inf", "1e-30", True, [1]])
def test_another_unit_of_depth_is_refused(unit: object) -> None:
    with pytest.raises(OptionError, match=r"depth_unit is .*: give m, mm, cm, kitti, tum, or a positive number"):
        PredictOptions.from_mapping({"depth_unit": unit})


def test_a_unit_of_depth_contradicts_a_format_without_unit() -> None:
    assert PredictOptions(depth_unit="mm", depth_format="metric")
    with pytest.raises(OptionError, match="depth_unit is 'mm' and depth_format 'relative', which has no unit"):
        PredictOptions(depth_unit="mm", depth_format="relative")

"""Writing of a prediction: its options, its format, its errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sharp_cog.config.options import PredictOptions
from sharp_cog.errors import OptionError, PredictionError
from sharp_cog.formats import FORMATS, format_of
from sharp_cog.geometry.camera import Camera
from sharp_cog.pipeline.prediction import Prediction, assumptions_of
from tests.splats import CAMERA, random_gaussians

SPLATS = [name for name in FORMATS if name not in ("html", "mp4")]


def prediction(**options: object) -> Prediction:
    return Prediction(
        predicted=random_gaussians(1000), camera=CAMERA, options=PredictOptions.from_mapping(options), key="a"
    )


@pytest.mark.parametrize("options", [{"max_gaussians": 10}, {"min_opacity": 0.5}, {"scale": 2.0, "axes": "opengl"}])
def test_write_applies_all_options(options: dict[str, object], tmp_path: Path) -> None:
    written = prediction(**options).write(tmp_path / "a.ply").read_bytes()
    assert written != prediction().write(tmp_path / "b.ply").read_bytes()
    assert written == prediction().with_options(PredictOptions.from_mapping(options)).write(tmp_path / "c").read_bytes()


def test_gaussians_are_those_that_the_options_keep() -> None:
    assert len(prediction().gaussians) == 1000
    assert len(prediction(max_gaussians=10).gaussians) == 10
    assert prediction(min_opacity=0.5).gaussians.opacities.min() >= 0.5


@pytest.mark.parametrize("name", SPLATS)
def test_the_suffix_selects_the_format(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"splat{FORMATS[name].suffix}"
    prediction().write(path)
    expected = prediction(output_format=format_of(path)).write(tmp_path / "expected")
    assert path.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("name", SPLATS)
def test_the_options_select_the_format_of_a_path_with_another_suffix(name: str, tmp_path: Path) -> None:
    written = prediction(output_format=name).write(tmp_path / "splat.bin")
    assert written.read_bytes() == prediction().write(tmp_path / "given", output_format=name).read_bytes()


def test_a_suffix_and_options_that_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"a\.spz has the suffix of spz, but output_format is 'sog': .*\.sog.*'spz'"):
        prediction(output_format="sog").write(tmp_path / "a.spz")
    assert not list(tmp_path.iterdir())


def test_two_formats_with_one_suffix_do_not_conflict(tmp_path: Path) -> None:
    apple = prediction(output_format="apple_ply").write(tmp_path / "apple.ply").read_bytes()
    assert apple != prediction().write(tmp_path / "ours.ply").read_bytes()


def test_the_parameter_overrides_suffix_and_options(tmp_path: Path) -> None:
    written = prediction(output_format="sog").write(tmp_path / "a.spz", output_format="splat")
    assert written.stat().st_size == 1000 * 32


def test_the_time_of_writing_belongs_to_the_prediction_that_was_written(tmp_path: Path) -> None:
    first = prediction()
    other = first.with_options(PredictOptions(max_gaussians=5))
    assert other.write(str(tmp_path / "a.ply")) == tmp_path / "a.ply"
    assert other.timings["write"] > 0
    assert "write" not in first.timings


def test_a_value_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    broken = prediction()
    broken.predicted.means[3, 1] = np.nan
    with pytest.raises(PredictionError):
        broken.write(tmp_path / "a.ply")
    assert not list(tmp_path.iterdir())


def test_a_focal_length_by_a_table_of_sensors_is_an_assumption_until_another_source_replaces_it() -> None:
    camera = Camera(
        width=3600, height=2400, focal_length_px=2920.0, focal_length_source="exif", focal_length_reason="by a table"
    )
    assert assumptions_of(camera, None) == (
        "focal length taken as 29.2 mm equivalent, by a table: if that is wrong, set focal_length_mm",
    )
    assert assumptions_of(replace(camera, focal_length_source="depth_file"), None) == ()

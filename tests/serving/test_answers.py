"""Answers that all frontends share: arrays, metadata, names of files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from sharp_cog.config.options import PredictOptions
from sharp_cog.errors import PredictionError
from sharp_cog.geometry.camera import Camera
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.serving import answers
from tests.splats import random_gaussians


def prediction(count: int = 1000, **options: object) -> Prediction:
    return Prediction(
        predicted=random_gaussians(count),
        camera=Camera(width=120, height=80, focal_length_px=90.5, focal_length_source="exif"),
        options=PredictOptions.from_mapping(options),
        timings={"decode": 0.5, "network": 1.25},
    )


def test_arrays_are_what_their_names_say() -> None:
    made = prediction()
    found, gaussians = answers.arrays(made), made.gaussians
    assert {name: values.shape[1:] for name, values in found.items()} == {
        "positions": (3,),
        "scales": (3,),
        "rotations": (4,),
        "opacities": (1,),
        "colors": (3,),
    }
    assert all(values.dtype == np.float32 and len(values) == 1000 for values in found.values())
    np.testing.assert_array_equal(found["positions"], gaussians.means)
    np.testing.assert_array_equal(found["scales"], gaussians.scales)
    np.testing.assert_array_equal(found["opacities"][:, 0], gaussians.opacities)
    linear = gaussians.colors_linear.double().numpy()
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(found["colors"], srgb, atol=1e-6)


def test_arrays_are_transformed_as_the_options_say() -> None:
    """Rotations and positions turn together; checked by scipy on a point of each Gaussian's first axis."""
    plain = answers.arrays(prediction())
    turned = answers.arrays(prediction(axes="opengl", scale=2.0))
    flip = np.array([1.0, -1.0, -1.0])
    np.testing.assert_allclose(turned["positions"], 2 * plain["positions"] * flip, rtol=1e-6)
    axes = [Rotation.from_quat(found["rotations"][:, [1, 2, 3, 0]]).apply([1.0, 0.0, 0.0]) for found in (plain, turned)]
    np.testing.assert_allclose(np.abs(np.sum(axes[1] * axes[0] * flip, axis=1)), 1, atol=1e-5)


def test_json_and_npz_hold_the_arrays(tmp_path: Path) -> None:
    made = replace(prediction(answers.ROWS_AT_A_TIME + 5), monodepth_m=np.ones((2, 3, 4), np.float32))
    answers.write_json(tmp_path / "a.json", made)
    answers.write_npz(tmp_path / "a.npz", made)
    told = json.loads((tmp_path / "a.json").read_bytes())
    with np.load(tmp_path / "a.npz") as held:
        assert held.files == [*answers.arrays(made), "metadata.json"]
        for name, values in answers.arrays(made).items():
            np.testing.assert_array_equal(held[name], values)
            np.testing.assert_array_equal(np.array(told[name], dtype=np.float32), values)
        assert json.loads(held["metadata.json"]) == told["metadata"]
    assert told["metadata"] == {
        "focal_length": 90.5,
        "assumptions": [],
        "focal_length_source": "exif",
        "image_size": [120, 80],
        "num_gaussians": answers.ROWS_AT_A_TIME + 5,
        "precision": "float32",
        "timings": {"decode": 0.5, "network": 1.25},
    }


def test_an_npz_does_not_depend_on_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = prediction()
    answers.write_npz(tmp_path / "a.npz", made)
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    answers.write_npz(tmp_path / "b.npz", made)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_no_gaussians_are_empty_lists(tmp_path: Path) -> None:
    answers.write_json(tmp_path / "a.json", prediction(0))
    assert json.loads((tmp_path / "a.json").read_bytes())["positions"] == []


@pytest.mark.parametrize("name", ["means", "scales", "opacities", "colors_linear", "quaternions_wxyz"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_not_sent(name: str, value: float, tmp_path: Path) -> None:
    made = prediction(10)
    values = getattr(made.predicted, name).clone()
    values.view(-1)[3] = value
    broken = replace(made, predicted=replace(made.predicted, **{name: values}))
    with pytest.raises(PredictionError, match="not finite, in"):
        answers.write_json(tmp_path / "a.json", broken)
    assert list(tmp_path.iterdir()) == []
    assert torch.isfinite(made.gaussians.means).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("beach.jpg", "beach.ply"),
        ("my beach (2).JPG", "my_beach_2.ply"),
        ("../../etc/passwd", "passwd.ply"),
        ("C:\\photos\\beach.heic", "beach.ply"),
        ("Straße.jpg", "Straße.ply"),
        ('a"; filename="b.exe', "a_filename_b.ply"),
        ("a\r\nSet-Cookie: b.jpg", "a_Set-Cookie_b.ply"),
        (".htaccess", "htaccess.ply"),
        ("", "splat.ply"),
        (None, "splat.ply"),
        ("...", "splat.ply"),
        ("a" * 300, "a" * 100 + ".ply"),
    ],
)
def test_a_splat_is_named_after_its_image(name: str | None, expected: str) -> None:
    assert answers.file_name(name, ".ply") == expected

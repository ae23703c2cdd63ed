"""`sharp-cog depth` with estimators that cost nothing; `tests/depth/test_estimators.py` has the real ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sharp_cog import estimators
from sharp_cog.estimators import Estimate
from sharp_cog.imaging.images import SourceImage
from tests.cli.commands import StubPredictor, names, run, write_image


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """The estimators that were loaded, with their checkpoints; all of them see a wall from 1 m to 2 m."""
    loaded: list[tuple[str, str | None]] = []

    def load(name: str, *, checkpoint: str | None, device: torch.device, commercial: bool) -> Any:
        loaded.append((name, checkpoint))
        return wall

    monkeypatch.setattr(estimators, "load", load)
    return loaded


def wall(source: SourceImage) -> Estimate:
    width, height = source.camera.width, source.camera.height
    depth_m = np.linspace(1, 2, width * height, dtype=np.float32).reshape(height, width)
    return Estimate(depth_m=depth_m, focal_length_px=77.0)


def test_a_depth_map_is_a_plain_array_in_metres(
    loaded: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = write_image(tmp_path / "photo.jpg")
    assert run("depth", photo, "--estimator-checkpoint", "mine") == 0
    assert loaded == [("depth-pro", "mine")]
    assert names(tmp_path) == ["photo.depth.webp", "photo.jpg", "photo.npy", "photo.npy.json"]
    depth_m = np.load(tmp_path / "photo.npy")
    assert (depth_m.dtype, depth_m.shape) == (np.float32, (64, 96))
    assert depth_m.mean() == pytest.approx(1.5)
    with Image.open(tmp_path / "photo.depth.webp") as colors:
        assert colors.size == (96, 64)
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'photo.npy'}: 1.05 m near, 1.50 m in the middle, 1.95 m far",
        "  focal length estimated: give predict --focal-length-px 77",
        f"use: sharp-cog predict IMAGE --depth {tmp_path / 'photo.npy'}",
    ]


def test_one_bad_image_does_not_stop_the_rest(
    loaded: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "photos" / "a.jpg", equivalent_mm=35)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"text")
    maps = tmp_path / "maps"
    assert run("depth", tmp_path / "photos", "-o", maps) == 2
    assert names(maps) == ["a.depth.webp", "a.npy", "a.npy.json"]
    captured = capsys.readouterr()
    assert f"error: {tmp_path / 'photos' / 'broken.jpg'}: " in captured.err
    assert "focal length estimated" not in captured.out, "EXIF has it"


def test_the_output_is_a_folder_unless_it_is_named_like_a_map(loaded: list[object], tmp_path: Path) -> None:
    photo = write_image(tmp_path / "a.jpg")
    assert run("depth", photo, "-o", tmp_path / "maps") == 0
    assert run("depth", photo, "-o", tmp_path / "one.npy") == 0
    assert (tmp_path / "maps" / "a.npy").is_file()
    assert (tmp_path / "one.npy").is_file()


def test_predict_takes_the_maps_of_a_folder_of_folders(
    loaded: list[object], predictor: StubPredictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, maps = tmp_path / "photos", tmp_path / "maps"
    for name in ("x/a.jpg", "x/a.png", "y/a.jpg", "b.jpg"):
        write_image(photos / name)
    assert run("depth", "-r", photos, "-o", maps) == 0
    assert f"--depth {maps}" in capsys.readouterr().out
    assert run("predict", "-r", photos, "--depth", maps, "-o", tmp_path / "splats") == 0
    # In metres: without the description beside each map, values from 1 to 1.5 would look like a relative map.
    assert predictor.depths_m == [pytest.approx(1.5, abs=1e-3)] * 4


@pytest.mark.parametrize("output", [True, False])
def test_predict_finds_the_maps_that_depth_has_written_for_images_of_the_same_name(
    loaded: list[object],
    predictor: StubPredictor,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    output: bool,
) -> None:
    photos, maps = tmp_path / "photos", tmp_path / "maps" if output else tmp_path / "photos"
    sizes = {"1.jpg": 90, "a/1.jpg": 60, "b/1.jpg": 48, "b/1.png": 36}
    for name, side in sizes.items():
        write_image(photos / name, width=side, height=side)

    def load(*arguments: object, **rest: object) -> Any:
        return lambda source: Estimate(depth_m=np.full((source.camera.height,) * 2, source.camera.width, np.float32))

    monkeypatch.setattr(estimators, "load", load)
    assert run("depth", photos, "-r", *(("-o", maps) if output else ())) == 0
    used = capsys.readouterr().out.splitlines()[-1].partition("--depth ")[2].rstrip("/")
    assert used == str(maps)
    assert run("predict", photos, "-r", "--model", "sharp", "--depth", used, "-o", tmp_path / "splats") == 0
    assert set(predictor.depths_m) == set(sizes.values())


def test_maps_of_earlier_versions_are_still_read_as_metres(predictor: StubPredictor, tmp_path: Path) -> None:
    photo = write_image(tmp_path / "photo.jpg")
    structured = np.full((64, 96), 1.25, dtype="<f4").view([("depth_m", "<f4")])
    np.save(tmp_path / "photo.npy", structured)
    assert run("predict", photo, "--depth", tmp_path / "photo.npy") == 0
    assert predictor.depths_m == [1.25]


def test_sharp_is_an_estimator_whose_front_layer_is_resized_to_the_image(
    predictor: StubPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = write_image(tmp_path / "photo.jpg")
    assert run("depth", photo, "-o", tmp_path / "own.npy", "--estimator", "sharp") == 0
    np.testing.assert_array_equal(np.load(tmp_path / "own.npy"), np.full((64, 96), 2.0, np.float32))
    monkeypatch.setenv("SHARP_MODEL", "lift")
    assert run("depth", photo, "--estimator", "sharp") == 2
    assert "SHARP_MODEL is 'lift': unset it" in capsys.readouterr().err

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sharp_cog import estimators, formats
from sharp_cog.estimators import Estimate
from tests.cli.commands import StubPredictor, names, run, write_image

SIDE_FILES = ("depth.webp", "npy", "npy.json", "ply", "preview.webp")


@pytest.mark.usefixtures("short_films")
def test_maps_and_splats_are_laid_side_by_side(
    predictor: StubPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = []

    def load(name: str, *, checkpoint: str | None, device: torch.device, commercial: bool) -> estimators.Estimator:
        checkpoints.append(checkpoint)
        depth_m = np.full((64, 96), 1.25 if name == "depth-pro" else 1.5, dtype=np.float32)
        return lambda source: Estimate(depth_m=depth_m)

    monkeypatch.setattr(estimators, "load", load)
    photo, folder = write_image(tmp_path / "photo.png"), tmp_path / "compared"
    assert run("compare-depth", photo, "-o", folder, "--depth-pro", "mine", "--depth-anything", "yours") == 0
    assert checkpoints == ["mine", "yours"]
    # The first call is SHARP's own depth as an estimator. The maps are metres, although they look relative.
    assert predictor.depths_m == [None, 2.0, 1.25, 1.5]
    estimated = ("sharp", "depth-pro", "depth-anything-v2-metric")
    expected = [f"photo.{name}.{suffix}" for name in estimated for suffix in SIDE_FILES]
    assert names(folder) == sorted([*expected, "photo.depths.png"])
    assert len(formats.read(folder / "photo.sharp.ply").gaussians) == 4
    with Image.open(folder / "photo.depths.png") as sheet:
        assert sheet.size == (960, 3 * (320 + 24))


def test_what_cannot_be_compared_is_reported(
    predictor: StubPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = write_image(tmp_path / "photo.png")
    assert run("compare-depth", photo, "-o", tmp_path, "--estimators", "midas") == 2
    assert "'midas' is no estimator: choose from sharp, moge-2" in capsys.readouterr().err
    assert run("compare-depth", tmp_path / "no.png", "-o", tmp_path) == 2
    assert run("compare-depth", photo, "-o", photo / "folder") == 1
    monkeypatch.setenv("SHARP_MODEL", "lift")
    assert run("compare-depth", photo, "-o", tmp_path, "--estimators", "sharp") == 2
    assert names(tmp_path) == ["photo.png"]

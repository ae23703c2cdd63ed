"""`sharp-cog predict --free`: the photograph's own depth, else that of a free network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sharp_cog import estimators, formats
from sharp_cog.cli import free
from sharp_cog.config.models import ESTIMATORS, ModelFacts
from sharp_cog.config.settings import Settings
from sharp_cog.errors import CheckpointMissingError, OptionError
from sharp_cog.estimators import Estimate
from tests.cli.commands import StubPredictor, run, write_image
from tests.depth.portraits import FAR_M, NEAR_M, gdepth_jpeg


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the networks whose weights are on the disk; at first none."""
    names: set[str] = set()

    def is_on_disk(facts: ModelFacts) -> bool:
        return facts.name in names

    monkeypatch.setattr(free, "is_on_disk", is_on_disk)
    return names


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the networks that were loaded; each of them finds a wall at 2.5 m."""
    names: list[str] = []

    def load(name: str, *, checkpoint: str | None, device: torch.device, commercial: bool) -> Any:
        assert commercial
        names.append(name)
        return lambda source: Estimate(
            depth_m=np.full((source.camera.height, source.camera.width), 2.5, dtype=np.float32)
        )

    monkeypatch.setattr(estimators, "load", load)
    return names


def depth_range(path: Path) -> tuple[float, float]:
    z = formats.read(path).gaussians.means[:, 2]
    return float(z.quantile(0.02)) if len(z) < 10**6 else float(z.min()), float(z.max())


def test_a_photograph_with_depth_needs_nothing_else(on_disk: set[str], loaded: list[str], tmp_path: Path) -> None:
    photo = tmp_path / "portrait.jpg"
    photo.write_bytes(gdepth_jpeg())
    assert run("predict", photo, "--free") == 0
    assert loaded == []
    near_m, far_m = depth_range(tmp_path / "portrait.ply")
    assert NEAR_M * 0.9 <= near_m < 1.2
    # The surface goes on a little beyond the border, on the side where it is farthest.
    assert 3.0 < far_m <= FAR_M * 1.25


def test_a_network_on_the_disk_estimates_the_depth_of_the_others(
    on_disk: set[str], loaded: list[str], tmp_path: Path
) -> None:
    on_disk.add("depth-anything-3-metric")
    (tmp_path / "portrait.jpg").write_bytes(gdepth_jpeg())
    write_image(tmp_path / "wall.jpg", equivalent_mm=35)
    assert run("predict", tmp_path, "--free", "-o", f"{tmp_path / 'out'}/") == 0
    assert loaded == ["depth-anything-3-metric"]
    assert depth_range(tmp_path / "out" / "wall.ply")[1] == pytest.approx(2.5, abs=0.1)
    # The measured depth is better than an estimate.
    assert depth_range(tmp_path / "out" / "portrait.ply")[1] > 3.0


def test_without_a_network_the_error_names_the_download_its_size_and_its_licence(
    on_disk: set[str], loaded: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = write_image(tmp_path / "photo.jpg")
    assert run("predict", photo, "--free") != 0
    error = capsys.readouterr().err
    assert f"{photo} carries no depth" in error
    assert "--depth-from moge-2 to download it (1.30 GB, MIT, commercial use allowed)" in error
    assert loaded == []


@pytest.mark.parametrize(("answer", "name"), [("y", "moge-2"), (" YES ", "moge-2"), ("n", None), ("", None)])
def test_on_a_terminal_the_download_is_asked_for(
    on_disk: set[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    answer: str,
    name: str | None,
) -> None:
    photo = write_image(tmp_path / "photo.jpg")
    monkeypatch.setattr("builtins.input", lambda: answer)
    if name is None:
        with pytest.raises(CheckpointMissingError):
            free.network_for([photo], max_pixels=10**8, is_interactive=True)
    else:
        assert free.network_for([photo], max_pixels=10**8, is_interactive=True) == name
    assert f"Download moge-2 ({ESTIMATORS['moge-2'].terms}) from huggingface.co? [y/N]" in capsys.readouterr().err


def test_a_network_that_is_named_may_be_downloaded(loaded: list[str], predictor: StubPredictor, tmp_path: Path) -> None:
    photo = write_image(tmp_path / "photo.jpg")
    assert run("predict", photo, "--free", "--depth-from", "moge-2") == 0
    assert loaded == ["moge-2"]


def test_free_refuses_a_model_and_a_network_that_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = write_image(tmp_path / "photo.jpg")
    assert run("predict", photo, "--free", "--model", "sharp") == 2
    assert "--free and --model sharp are both given" in capsys.readouterr().err
    assert run("predict", photo, "--free", "--depth-from", "depth-pro") != 0
    assert "does not allow that" in capsys.readouterr().err


def test_the_model_of_the_environment_gives_way_to_free(monkeypatch: pytest.MonkeyPatch) -> None:
    assert free.settings_for(Settings(model="sharp"), None).model == "lift"
    with pytest.raises(OptionError):
        free.settings_for(Settings(), "ml-sharp")


def test_a_broken_image_is_reported_as_such(
    on_disk: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"\xff\xd8\xff\xe0 no photograph")
    assert run("predict", photo, "--free") == 2
    error = capsys.readouterr().err
    assert "[invalid_image]" in error
    assert "network" not in error


def test_broken_depth_is_reported_and_not_replaced_by_an_estimate(
    on_disk: set[str], loaded: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on_disk.add("moge-2")
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(gdepth_jpeg().replace(b"GDepth:Near", b"GDepth:Naer"))
    for arguments in (["--free"], ["--model", "lift"]):
        assert run("predict", photo, *arguments) == 2
        error = capsys.readouterr().err
        assert "[invalid_depth]" in error
        assert "carries none" not in error
    assert loaded == []

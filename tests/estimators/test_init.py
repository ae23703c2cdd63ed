"""Loading of estimators: by name, from a folder, with the licence that the use needs."""

from __future__ import annotations

import logging
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from sharp_cog import estimators
from sharp_cog.config.models import ESTIMATORS, FREE_ESTIMATORS
from sharp_cog.errors import CheckpointError, CheckpointMissingError, NotInstalledError, SettingError
from tests.estimators.references import depth_anything_3_state, moge_checkpoint, source

CPU = torch.device("cpu")


def test_every_estimator_of_the_table_can_be_loaded(tmp_path: Path) -> None:
    for name in ESTIMATORS:
        with pytest.raises(CheckpointMissingError, match=name):
            estimators.load(name, checkpoint=str(tmp_path), device=CPU)


def test_the_error_for_a_missing_checkpoint_says_how_to_download_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissingError, match=r"hf download .* --local-dir FOLDER"):
        estimators.load("depth-pro", checkpoint=str(tmp_path), device=CPU)


@pytest.mark.parametrize(("name", "extra"), [("moge-2", "hub"), ("depth-pro", "depth")])
def test_the_error_without_the_packages_names_the_extra(monkeypatch: pytest.MonkeyPatch, name: str, extra: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotInstalledError, match=rf"pip install -e '\.\[{extra}\]'"):
        estimators.load(name, checkpoint=None, device=CPU)


def test_moge_and_depth_anything_3_load_from_folders_in_the_layout_of_the_hub(tmp_path: Path) -> None:
    torch.save(moge_checkpoint(), tmp_path / "model.pt")
    save_file(depth_anything_3_state(), tmp_path / "model.safetensors")
    photo = source(96, 64, 80.0)
    for name in ("moge-2", "depth-anything-3-metric"):
        estimate = estimators.load(name, checkpoint=str(tmp_path), device=CPU)(photo)
        assert estimate.depth_m.shape == (64, 96)
        assert (estimate.depth_m > 0).all()


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({"model": depth_anything_3_state(), "model_config": {}}, tmp_path / "model.pt")
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    for name in ("moge-2", "depth-anything-3-metric"):
        with pytest.raises(CheckpointError, match=f"does not fit {name}"):
            estimators.load(name, checkpoint=str(tmp_path), device=CPU)


@pytest.mark.parametrize("content", [b"", b"\x80\x02no pickle", b"PK\x03\x04 no zip"])
def test_a_broken_file_is_reported_as_such(tmp_path: Path, content: bytes) -> None:
    for name in ("model.pt", "model.safetensors"):
        (tmp_path / name).write_bytes(content)
    for name in ("moge-2", "depth-anything-3-metric"):
        with pytest.raises(CheckpointError, match="is broken"):
            estimators.load(name, checkpoint=str(tmp_path), device=CPU)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_commercial_use_needs_a_licence_that_allows_it(name: str, tmp_path: Path) -> None:
    # An allowed network gets as far as its weights, which the folder lacks.
    expected = CheckpointMissingError if name in FREE_ESTIMATORS else SettingError
    with pytest.raises(expected) as caught:
        estimators.load(name, checkpoint=str(tmp_path), device=CPU, commercial=True)
    if expected is SettingError:
        assert ESTIMATORS[name].licence in str(caught.value)
        assert "moge-2" in str(caught.value)


def test_size_and_licence_are_logged_before_a_download(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    said: list[str] = []

    def download(repository: str, file: str) -> str:
        said.extend(caplog.messages)
        torch.save(moge_checkpoint(), tmp_path / file)
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with caplog.at_level(logging.WARNING):
        estimators.load("moge-2", checkpoint=None, device=CPU)
    assert said == ["moge-2: downloading 1.30 GB, MIT, commercial use allowed from huggingface.co/Ruicheng/moge-2-vitl"]


def test_weights_in_the_cache_of_the_hub_count_as_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    facts = ESTIMATORS["moge-2"]
    found: dict[str, str] = {}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file: found.get(f"{repo}/{file}"))
    assert not estimators.is_on_disk(facts)
    found["Ruicheng/moge-2-vitl/model.pt"] = str(tmp_path)
    assert estimators.is_on_disk(facts)

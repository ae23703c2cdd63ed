"""Runs as their settings build them, and settings that cannot work."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from sharp_cog.config.settings import Settings
from sharp_cog.dataset.build import build
from sharp_cog.dataset.hub import HubError
from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.local import LocalEngine
from sharp_cog.dataset.ray_engine import RayEngine
from sharp_cog.errors import SettingError
from tests.dataset.client import run_of, settings_of
from tests.dataset.hub_server import HubServer


@pytest.mark.parametrize(("name", "engine"), [("local", LocalEngine), ("ray", RayEngine)])
def test_the_settings_name_the_engine(tmp_path: Path, name: str, engine: type[object]) -> None:
    settings = settings_of(tmp_path, engine=name)
    with closing(Journal(tmp_path / "journal.sqlite")) as journal:
        assert isinstance(build(settings, journal, Settings(model="lift"))._engine, engine)


def test_rows_name_licence_and_author_of_a_folder(tmp_path: Path) -> None:
    run = run_of(settings_of(tmp_path, count=1, input_license="CC BY 4.0", input_author="Ann"))
    (photo,) = run.source.photos(lambda _: False)
    assert (photo.row["license"], photo.row["user_name"]) == ("CC BY 4.0", "Ann")


def test_a_missing_folder_of_images_is_named(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    with pytest.raises(SettingError, match=r"SHARP_INPUT_DIR is .*nowhere, which is no folder"):
        run_of(replace(settings, input_dir=str(tmp_path / "nowhere")))


def test_a_name_that_the_hub_forbids_is_named(tmp_path: Path, hub: HubServer) -> None:
    with pytest.raises(SettingError, match=r"HF_REPO_ID is 'you/a\.\.b'"):
        run_of(settings_of(tmp_path, hf_upload=True, hf_repo_id="you/a..b"))


def test_a_missing_token_is_named(tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with pytest.raises(HubError, match=r"the hub refuses \(401\).*HF_TOKEN may write there"):
        run_of(settings_of(tmp_path, hf_upload=True, hf_repo_id="somebody/new"))

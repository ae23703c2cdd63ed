"""Every setting of a dataset run changes how the run is put together, or what it does then.

The settings themselves are left out of what is compared: a setting that is only carried along changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import sharp_cog.dataset.build
from sharp_cog.config.dataset import DatasetSettings
from sharp_cog.config.settings import Settings
from sharp_cog.dataset.build import build
from sharp_cog.dataset.engine import Engine
from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.outlet import Outlet
from sharp_cog.dataset.progress import Progress
from sharp_cog.dataset.run import Run
from sharp_cog.errors import SettingError
from tests.config.test_dataset import ENVIRONMENT
from tests.contract.command_lines import dataset_rows

NOT_BUILT = {"device"}
"""The command line gives it to the model: a row of its own there, `test_every_flag.py`."""
UNSPLASH = {"source": "list", "unsplash_access_key": "key"}
RANGES = {**UNSPLASH, "order_by": "oldest", "hf_upload": True, "hf_repo_id": "a/b", "hf_use_locks": True}
HUB = {"hf_upload": True, "hf_repo_id": "a/b"}
LOCKS = {**HUB, "hf_use_locks": True}
GSPLAT = {"gsplat_upload": True}
NEEDS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("unsplash_app_name", "unsplash_api_url", "order_by", "per_page"), UNSPLASH),
    **dict.fromkeys(("list_auto_seek", "stop_on_rate_limit"), UNSPLASH),
    "source": {"unsplash_access_key": "key", "queries": ("a",)},
    "queries": {"source": "search", "unsplash_access_key": "key", "queries": ("b",)},
    "list_seek_back_pages": UNSPLASH,
    "hf_upload": {"hf_repo_id": "a/b"},
    **dict.fromkeys(("hf_repo_id", "hf_repo_type", "hf_subdir", "hf_index_repo_path", "hf_use_locks"), HUB),
    **dict.fromkeys(("hf_locks_dir", "hf_done_dir", "hf_lock_stale_secs"), LOCKS),
    "hf_formats": {"formats": ("ply", "spz")},
    **{setting.name: RANGES for setting in fields(DatasetSettings) if setting.name.startswith("range_")},
    "range_lock_min_images": {**RANGES, "max_images": 20},
    **{setting.name: GSPLAT for setting in fields(DatasetSettings) if setting.name.startswith("gsplat_")},
    "gsplat_upload": {},
    "ray_address": {"engine": "ray"},
    "claim_batch": LOCKS,
    "unsplash_access_key": {"source": "list"},
}
"""Without which a setting means nothing."""


class Repo:
    """A repository on the hub that is not asked anything."""

    def __init__(self, *about: str) -> None:
        self.about = about

    def create(self) -> None:
        pass


def fingerprint(found: object, seen: set[int] | None = None) -> object:
    """All that an object of the run holds, down to numbers and text, without the settings."""
    seen = set() if seen is None else seen
    if isinstance(found, (str, int, float, bool, type(None), Path)):
        return found
    if isinstance(found, (DatasetSettings, Settings, Journal, Progress)) or id(found) in seen:
        return type(found).__name__
    seen.add(id(found))
    if isinstance(found, (tuple, list, set)):
        return [fingerprint(each, seen) for each in found]
    if isinstance(found, dict):
        return {str(name): fingerprint(each, seen) for name, each in found.items()}
    held = {name: getattr(found, name, None) for name in getattr(type(found), "__slots__", ())} | getattr(
        found, "__dict__", {}
    )
    if not type(found).__module__.startswith(("sharp_cog", "tests")):
        return type(found).__name__
    return [type(found).__name__, {name: fingerprint(each, seen) for name, each in held.items()}]


class Idle:
    """An engine without work."""

    def run(self, jobs: Iterable[Any]) -> Iterator[Any]:
        return iter(list(jobs)[:0])


class Once:
    """The end of a run, after one look."""

    def __init__(self) -> None:
        self.looks = iter((False, True))

    def wait(self, seconds: float) -> bool:
        return next(self.looks)


def built(settings: DatasetSettings, patch: pytest.MonkeyPatch) -> object:
    """How the run is put together."""
    patch.setattr(sharp_cog.dataset.build, "HubRepo", Repo)
    patch.setattr("sharp_cog.dataset.ray_engine.RayEngine", lambda *arguments, **named: (Idle(), arguments[1:], named))
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    journal = Journal(settings.run_dir / "journal.sqlite")
    run = build(settings, journal, Settings(model="lift", device="cpu"))
    journal.close()
    return fingerprint(vars(run))


def worked(settings: DatasetSettings, patch: pytest.MonkeyPatch) -> object:
    """What the run does with nothing to make: its threads, when it publishes, the files that it looks for."""
    threads, published, looked = list[str](), list[Any](), list[str]()
    started, exists = Run._started, Path.exists

    def noted_thread(run: Run, name: str, *arguments: Any) -> threading.Thread:
        threads.append(name)
        return started(run, name, *arguments)

    def noted_look(path: Path, **more: Any) -> bool:
        looked.append(str(path))
        return exists(path, **more)

    patch.setattr(Run, "_started", noted_thread)
    patch.setattr(Outlet, "publish_all", lambda outlet, pipe, **named: published.append(named))
    patch.setattr(Path, "exists", noted_look)
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    journal = Journal(settings.run_dir / "journal.sqlite")
    engine: Engine = Idle()
    run = build(settings, journal, Settings(model="lift", device="cpu"), engine=engine)
    run.work()
    run._is_over = Once()  # type: ignore[assignment]
    run._watch()
    journal.close()
    return sorted(threads), published, sorted(set(looked))


WORKED = ("upload_workers", "hf_index_flush_every", "hf_index_flush_secs", "pause_file", "stop_file")
"""What counts only while the run goes on."""


def test_every_setting_has_a_value_to_try() -> None:
    variables = {setting.metadata["variable"] for setting in fields(DatasetSettings)}
    assert variables == ENVIRONMENT.keys() | {"CLAIMS_DIR"}
    assert dataset_rows().keys() >= NOT_BUILT


BUILT = [setting for setting in fields(DatasetSettings) if setting.name not in NOT_BUILT]


@pytest.mark.parametrize("setting", BUILT, ids=lambda setting: str(setting.name))
def test_every_setting_changes_the_run(setting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "other").mkdir()
    places = {"input_dir": str(tmp_path / "in"), "runs_dir": str(tmp_path / "runs")}
    special = {
        "input_dir": str(tmp_path / "other"),
        "runs_dir": str(tmp_path / "elsewhere"),
        "claims_dir": str(tmp_path / "claims"),
        "order_by": "oldest",
        "formats": ("ply", "spz"),
        "hf_formats": ("spz",),
    }
    value = special.get(setting.name, ENVIRONMENT.get(setting.metadata["variable"], ("", None))[1])
    base = {**places, **NEEDS.get(setting.name, {})}
    look = worked if setting.name in WORKED else built
    seen = []
    for values in (base, base, {**base, setting.name: value}):
        with monkeypatch.context() as patch:
            try:
                seen.append(look(DatasetSettings(**values), patch))
            except SettingError as error:
                assert "UNSPLASH_ACCESS_KEY is not set" in str(error)  # noqa: PT017 - the only one that is refused
                seen.append("refused")
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]

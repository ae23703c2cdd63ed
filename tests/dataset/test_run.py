"""Runs from end to end with a stub of the model: files on disk, the journal, pausing, stopping, failing."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sharp_cog.dataset.folder import Folder
from sharp_cog.dataset.folder_store import FolderStore
from sharp_cog.dataset.index import read_rows
from sharp_cog.dataset.leases import Lease, Leases
from sharp_cog.dataset.run import Run
from sharp_cog.errors import DeviceError
from tests.dataset.client import REPO, engine_of, journal_of, run_of, settings_of, wait_until
from tests.dataset.hub_server import HubServer


def started(run: Run) -> threading.Thread:
    thread = threading.Thread(target=run.work)
    thread.start()
    return thread


def ended(thread: threading.Thread) -> None:
    thread.join(60)
    assert not thread.is_alive()


def test_a_folder_becomes_splats_and_a_second_run_does_nothing(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    run_of(settings).work()
    assert journal_of(settings).counts() == {"done": 5}
    images = sorted(path.name for path in (settings.run_dir / "images").iterdir())
    splats = sorted(path.name for path in (settings.run_dir / "gaussians").iterdir())
    assert len(images) == 5
    assert len(splats) == 10
    assert {Path(name).stem for name in images} == {name.partition(".")[0] for name in splats}
    before = {path: path.stat().st_mtime_ns for path in settings.run_dir.rglob("*.ply")}
    again = run_of(settings)
    again.work()
    assert engine_of(again).made == []
    assert {path: path.stat().st_mtime_ns for path in settings.run_dir.rglob("*.ply")} == before


def test_one_file_pauses_a_run_and_another_one_stops_it(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, count=30, control_dir=str(tmp_path / "control"), download_queue_max=2)
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "PAUSE").touch()
    run = run_of(settings, seconds=0.05)
    thread = started(run)
    time.sleep(0.5)
    assert run.journal.counts().get("done", 0) == 0
    assert run.is_paused
    (tmp_path / "control" / "PAUSE").unlink()
    wait_until(lambda: run.journal.counts().get("done", 0) >= 3)
    (tmp_path / "control" / "STOP").touch()
    ended(thread)
    counts = run.journal.counts()
    assert 3 <= counts["done"] < 30
    assert "made" not in counts, "the photographs under way were finished"
    (tmp_path / "control" / "STOP").unlink()
    run_of(settings).work()
    assert journal_of(settings).counts() == {"done": 30}


def test_a_stopped_run_leaves_fetched_images_to_the_next_one(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, count=9, download_queue_max=8)
    run = run_of(settings, seconds=0.4)
    thread = started(run)
    wait_until(lambda: run.journal.counts().get("fetched", 0) >= 8)
    run.stop()
    ended(thread)
    assert len(engine_of(run).made) <= 2, "the one under way, and one that may have begun meanwhile"
    assert run.journal.counts()["fetched"] >= 6


def test_a_failed_device_ends_the_run_and_loses_nothing(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, download_queue_max=1)
    run = run_of(settings)
    engine_of(run).failures = {2: [DeviceError("the device is gone")]}
    with pytest.raises(DeviceError, match="the device is gone"):
        run.work()
    assert run.journal.counts()["done"] == 2, "splats that were made are finished"
    assert "failed" not in run.journal.counts()
    again = run_of(settings)
    again.work()
    assert journal_of(settings).counts() == {"done": 5}
    assert len(engine_of(again).made) == 3


def test_half_written_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    left = [settings.images_dir / ".photo.jpg.0a1b2c3d.part", settings.gaussians_dir / ".photo.ply.0a1b2c3d.part"]
    for path in left:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
    run_of(settings).work()
    assert not any(path.exists() for path in left)


def test_two_clients_share_the_work(tmp_path: Path, hub: HubServer) -> None:
    shared = {"hf_upload": True, "hf_repo_id": REPO, "hf_use_locks": True, "claim_batch": 3}
    runs = [run_of(settings_of(tmp_path, count=20, run_id=name, **shared), 0.02) for name in ("one", "two")]
    for thread in [started(run) for run in runs]:
        ended(thread)
    made = [name for run in runs for name in engine_of(run).made]
    assert len(made) == len(set(made)) == 20
    files = hub.files(REPO)
    assert len(read_rows(files["data/train.jsonl"])) == 20
    assert sum(name.startswith("done/") for name in files) == 20
    assert not [name for name in files if name.startswith("locks/")]


def test_leases_are_renewed_while_a_run_works(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    settings = settings_of(tmp_path, count=4, claims_dir=str(shared), hf_lock_stale_secs=2.0)
    thread = started(run_of(settings, seconds=0.8))
    time.sleep(2.6)
    assert thread.is_alive()
    other = Leases(FolderStore(shared), "other", stale_s=2.0)
    photos = list(Folder(tmp_path / "in").photos(lambda _: False))
    assert other.acquire(photos).ours == []
    ended(thread)
    assert len(other.acquire(photos).done) == 4


def test_a_photograph_that_another_client_took_over_is_left_to_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shared = tmp_path / "shared"
    settings = settings_of(tmp_path, count=4, claims_dir=str(shared), hf_lock_stale_secs=1.5)
    run = run_of(settings, seconds=0.6)
    thread = started(run)
    photos = list(Folder(tmp_path / "in").photos(lambda _: False))
    lock = shared / "locks" / photos[3].id
    wait_until(lock.exists)
    lock.write_bytes(Lease(time=time.time() + 60, owner="other").encode())
    ended(thread)
    assert f"{photos[3].id}: another client took it over" in caplog.text
    assert run.journal.counts() == {"done": 3, "taken": 1}
    assert engine_of(run).made == [photo.id for photo in photos[:3]]
    assert lock.exists(), "it belongs to the other client"


def test_a_run_goes_on_with_another_limit(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, max_images=2)
    run_of(settings).work()
    assert journal_of(settings).counts()["done"] == 2
    run_of(replace(settings, max_images=0)).work()
    assert journal_of(settings).counts() == {"done": 5}

"""A run from end to end, with a stub for the model: what is on disk, in the journal and in the repository."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sharp_cog.config.dataset import DatasetSettings
from sharp_cog.dataset.claims import Claims, Lock
from sharp_cog.dataset.folder import Folder
from sharp_cog.dataset.folder_store import FolderStore
from sharp_cog.dataset.hub import HubError
from sharp_cog.dataset.index import OWN_FIELDS, PUBLIC_FIELDS, read_rows
from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.photo import Photo
from sharp_cog.dataset.run import Run
from sharp_cog.errors import DeviceError, PredictionError, SettingError
from tests.dataset.client import StubEngine, run_of
from tests.dataset.hub_server import HubServer
from tests.dataset.photographs import photographs

REPO = "somebody/splats"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    server = HubServer()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    yield server
    server.close()


def settings_of(tmp_path: Path, count: int = 5, **more: object) -> DatasetSettings:
    folder = photographs(tmp_path / "in", count)
    values = {"input_dir": str(folder), "runs_dir": str(tmp_path / "runs"), "formats": ("ply", "spz")}
    return DatasetSettings(**{**values, **more})  # type: ignore[arg-type]


def journal_of(settings: DatasetSettings) -> Journal:
    return Journal(settings.run_dir / "journal.sqlite")


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


def test_a_broken_picture_is_tried_twice_and_stops_nobody(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    (tmp_path / "in" / "broken.jpg").write_text("text")
    for _ in range(2):
        run_of(settings).work()
    journal = journal_of(settings)
    assert journal.counts() == {"done": 5, "failed": 1}
    (failed,) = journal.entries("failed")
    assert failed.tries == 2
    assert failed.error.startswith("invalid_image: ")


def test_only_so_many_as_are_wanted(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, max_images=2)
    run_of(settings).work()
    assert journal_of(settings).counts()["done"] == 2
    run_of(replace(settings, max_images=0)).work()
    assert journal_of(settings).counts() == {"done": 5}


def test_a_file_pauses_and_a_file_stops(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, count=30, control_dir=str(tmp_path / "control"), download_queue_max=2)
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "PAUSE").touch()
    run = run_of(settings, seconds=0.05)
    thread = threading.Thread(target=run.work)
    thread.start()
    time.sleep(0.5)
    assert run.journal.counts().get("done", 0) == 0
    assert run.progress.is_paused
    (tmp_path / "control" / "PAUSE").unlink()
    while run.journal.counts().get("done", 0) < 3:
        time.sleep(0.02)
    (tmp_path / "control" / "STOP").touch()
    thread.join(20)
    assert not thread.is_alive()
    counts = run.journal.counts()
    assert 3 <= counts["done"] < 30
    assert "made" not in counts, "what was under way was finished"
    (tmp_path / "control" / "STOP").unlink()
    run_of(settings).work()
    assert journal_of(settings).counts() == {"done": 30}


def test_a_run_is_published_with_its_index_and_a_card(tmp_path: Path, hub: HubServer) -> None:
    settings = settings_of(tmp_path, hf_upload=True, hf_repo_id=REPO, hf_index_flush_every=2)
    run_of(settings).work()
    files = hub.files(REPO)
    rows = read_rows(files["data/train.jsonl"])
    assert len(rows) == 5
    for row in rows:
        assert row.keys() == {*PUBLIC_FIELDS, *OWN_FIELDS}
        assert all(isinstance(value, str) for value in row.values())
        photo_id = row["image_id"]
        assert row["image_path"] == f"photos/{photo_id}/{photo_id}.png"
        assert row["ply_url"] == f"{hub.url}/datasets/{REPO}/resolve/main/photos/{photo_id}/{photo_id}.ply"
        splats = json.loads(row["splat_paths"])
        assert files[splats["ply"]].startswith(b"ply")
        assert files[splats["spz"]].startswith(b"\x1f\x8b")
        assert files[row["image_path"]].startswith(b"\x89PNG")
    assert b"path: data/train.jsonl" in files["README.md"]
    num_commits = len(hub.commits(REPO))
    assert num_commits <= 1 + 3, "the first, and one for two photographs"
    run_of(settings).work()
    assert len(hub.commits(REPO)) == num_commits


def test_an_interrupted_publication_is_made_up_for(tmp_path: Path, hub: HubServer) -> None:
    settings = settings_of(tmp_path)
    run_of(settings).work()
    journal = journal_of(settings)
    for entry in list(journal.entries("done")):
        journal.advance(entry.photo.id, "made")
    journal.close()
    published = replace(settings, hf_upload=True, hf_repo_id=REPO)
    again = run_of(published)
    again.work()
    assert engine_of(again).made == []
    assert len(read_rows(hub.files(REPO)["data/train.jsonl"])) == 5


def test_two_clients_share_the_work(tmp_path: Path, hub: HubServer) -> None:
    shared = {"hf_upload": True, "hf_repo_id": REPO, "hf_use_locks": True, "claim_batch": 3}
    runs = [run_of(settings_of(tmp_path, count=20, run_id=name, **shared), 0.02) for name in ("one", "two")]
    threads = [threading.Thread(target=run.work) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    made = [name for run in runs for name in engine_of(run).made]
    assert len(made) == len(set(made)) == 20
    files = hub.files(REPO)
    assert len(read_rows(files["data/train.jsonl"])) == 20
    assert sum(name.startswith("done/") for name in files) == 20
    assert not [name for name in files if name.startswith("locks/")]


def engine_of(run: Run) -> StubEngine:
    assert isinstance(run._engine, StubEngine)
    return run._engine


def test_what_fails_once_is_tried_again_in_the_same_run_from_the_picture_on_disk(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    run = run_of(settings)
    # The last one too: nothing else is left to do then.
    engine_of(run).failures = {1: [ValueError("not foreseen")], 4: [PredictionError("for once")]}
    fetched: list[str] = []
    fetch = run.source.fetch

    def counted(photo: Photo) -> bytes:
        fetched.append(photo.id)
        return fetch(photo)

    run.source.fetch = counted  # type: ignore[method-assign]
    run.work()
    assert run.journal.counts() == {"done": 5}
    assert [entry.tries for entry in run.journal.entries("done")] == [0, 1, 0, 0, 1]
    assert len(fetched) == len(set(fetched)) == 5


def test_a_device_that_fails_ends_the_run_and_loses_nothing(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, download_queue_max=1)
    run = run_of(settings)
    engine_of(run).failures = {2: [DeviceError("the device is gone")]}
    with pytest.raises(DeviceError, match="the device is gone"):
        run.work()
    assert run.journal.counts()["done"] == 2, "what was made is finished"
    assert "failed" not in run.journal.counts()
    again = run_of(settings)
    again.work()
    assert journal_of(settings).counts() == {"done": 5}
    assert len(engine_of(again).made) == 3


def test_a_hub_that_is_gone_ends_the_run_and_nothing_is_made_again(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharp_cog.dataset.hub.MAX_TRIES", 2)
    settings = settings_of(
        tmp_path, count=12, hf_upload=True, hf_repo_id=REPO, hf_index_flush_every=2, upload_queue_max=1
    )
    run = run_of(settings)
    hub.fail = 10**6
    with pytest.raises(HubError, match="could not be changed after 2 tries"):
        run.work()
    num_made = len(engine_of(run).made)
    assert run.journal.counts()["made"] == num_made
    hub.fail = 0
    again = run_of(settings)
    again.work()
    assert len(engine_of(again).made) == 12 - num_made
    assert len(read_rows(hub.files(REPO)["data/train.jsonl"])) == 12


def test_rows_are_flushed_after_a_while(tmp_path: Path, hub: HubServer) -> None:
    settings = settings_of(tmp_path, count=12, hf_upload=True, hf_repo_id=REPO, hf_index_flush_secs=0.3)
    run = run_of(settings, seconds=0.25)
    thread = threading.Thread(target=run.work)
    thread.start()
    deadline = time.monotonic() + 20
    while "data/train.jsonl" not in hub.files(REPO) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert thread.is_alive()
    assert 0 < len(read_rows(hub.files(REPO)["data/train.jsonl"])) < 12
    thread.join(30)
    assert len(read_rows(hub.files(REPO)["data/train.jsonl"])) == 12


def test_what_is_made_but_deleted_is_made_again(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    run_of(settings).work()
    journal = journal_of(settings)
    entries = list(journal.entries("done"))
    for entry in entries:
        journal.advance(entry.photo.id, "made")
    (settings.gaussians_dir / entries[0].about["splats"]["spz"]).unlink()
    (settings.images_dir / entries[1].about["image"]).unlink()
    again = run_of(settings)
    again.work()
    assert sorted(engine_of(again).made) == sorted(entry.photo.id for entry in entries[:2])
    assert journal.counts() == {"done": 5}


def test_what_another_client_has_is_left_to_it_and_looked_at_again(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    settings = settings_of(tmp_path, claims_dir=str(shared), claim_batch=2)
    other = Claims(FolderStore(shared), "other", locks_dir="locks", done_dir="done", stale_s=3600)
    photos = list(run_of(settings).source.photos(lambda _: False))
    other.claim(photos[1:3])
    run_of(settings).work()
    assert journal_of(settings).counts() == {"done": 3, "taken": 2}
    other.finish([photos[1].id])
    other.release([photos[2].id])
    again = run_of(settings)
    again.work()
    assert journal_of(settings).counts() == {"done": 4, "others": 1}
    assert engine_of(again).made == [photos[2].id]
    assert sorted(path.name for path in (shared / "locks").iterdir()) == []
    assert len(list((shared / "done").iterdir())) == 5


def test_what_is_given_up_is_given_back(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    settings = settings_of(tmp_path, claims_dir=str(shared))
    (tmp_path / "in" / "broken.jpg").write_text("text")
    run_of(settings).work()
    assert journal_of(settings).counts() == {"done": 5, "failed": 1}
    assert list((shared / "locks").iterdir()) == []
    assert len(list((shared / "done").iterdir())) == 5


def test_a_folder_of_which_so_much_is_looked_at(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, max_scan=3)
    run_of(settings).work()
    assert journal_of(settings).counts() == {"done": 3}
    run_of(settings).work()
    assert journal_of(settings).counts() == {"done": 3}, "known ones are looked at, too"


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    with pytest.raises(SettingError, match=r"SHARP_INPUT_DIR is .*nowhere, which is no folder"):
        run_of(replace(settings, input_dir=str(tmp_path / "nowhere")))


def test_claims_are_renewed_while_a_run_works(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    settings = settings_of(tmp_path, count=4, claims_dir=str(shared), hf_lock_stale_secs=2.5)
    run = run_of(settings, seconds=1.0)
    thread = threading.Thread(target=run.work)
    thread.start()
    time.sleep(3.2)
    assert thread.is_alive()
    other = Claims(FolderStore(shared), "other", locks_dir="locks", done_dir="done", stale_s=2.5)
    photos = list(Folder(tmp_path / "in").photos(lambda _: False))
    assert other.claim(photos).ours == []
    thread.join(30)
    assert len(other.claim(photos).done) == 4


def test_a_photograph_that_another_client_took_over_is_left_to_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shared = tmp_path / "shared"
    settings = settings_of(tmp_path, count=4, claims_dir=str(shared), hf_lock_stale_secs=1.5)
    run = run_of(settings, seconds=0.8)
    thread = threading.Thread(target=run.work)
    thread.start()
    photos = list(Folder(tmp_path / "in").photos(lambda _: False))
    lock = shared / "locks" / photos[3].id
    deadline = time.monotonic() + 10
    while not lock.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    lock.write_bytes(Lock(time=time.time() + 60, owner="other").text())
    thread.join(30)
    assert not thread.is_alive()
    assert f"{photos[3].id}: another client has taken it over" in caplog.text
    assert run.journal.counts() == {"done": 3, "taken": 1}
    assert engine_of(run).made == [photo.id for photo in photos[:3]]
    assert lock.exists(), "it is not ours to give back"


def test_a_repository_of_models_will_do(tmp_path: Path, hub: HubServer) -> None:
    run_of(settings_of(tmp_path, hf_upload=True, hf_repo_id=REPO, hf_repo_type="model")).work()
    rows = read_rows(hub.files(REPO, "model")["data/train.jsonl"])
    assert len(rows) == 5
    assert rows[0]["image_url"].startswith(f"{hub.url}/{REPO}/resolve/main/photos/")


def test_a_name_that_no_repository_has_is_told(tmp_path: Path, hub: HubServer) -> None:
    with pytest.raises(SettingError, match=r"HF_REPO_ID is 'you/a\.\.b'"):
        run_of(settings_of(tmp_path, hf_upload=True, hf_repo_id="you/a..b"))


def test_a_token_that_is_missing_is_told(tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with pytest.raises(HubError, match=r"the hub refuses \(401\).*HF_TOKEN may write there"):
        run_of(settings_of(tmp_path, hf_upload=True, hf_repo_id=REPO))


def test_only_some_formats_are_published(tmp_path: Path, hub: HubServer) -> None:
    formats = ("ply", "spz", "sog")
    settings = settings_of(
        tmp_path, count=2, formats=formats, hf_upload=True, hf_repo_id=REPO, hf_formats=("spz", "sog")
    )
    run_of(settings).work()
    assert {path.suffix for path in settings.gaussians_dir.iterdir()} == {".ply", ".spz", ".sog"}
    names = hub.files(REPO)
    assert {Path(name).suffix for name in names if name.startswith("photos/")} == {".png", ".spz", ".sog"}
    for row in read_rows(names["data/train.jsonl"]):
        assert row["ply_url"] == ""
        assert json.loads(row["splat_paths"]).keys() == json.loads(row["sha256"]).keys() == {"spz", "sog"}


def test_a_stop_leaves_fetched_pictures_to_the_next_run(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, count=9, download_queue_max=8)
    run = run_of(settings, seconds=0.4)
    thread = threading.Thread(target=run.work)
    thread.start()
    deadline = time.monotonic() + 20
    while run.journal.counts().get("fetched", 0) < 8 and time.monotonic() < deadline:
        time.sleep(0.02)
    run.stop()
    thread.join(20)
    assert len(engine_of(run).made) <= 2, "the one under way, and one that may have begun meanwhile"
    assert run.journal.counts()["fetched"] >= 6


def test_half_files_of_a_killed_process_are_swept_away(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    left = [settings.images_dir / ".photo.jpg.0a1b2c3d.part", settings.gaussians_dir / ".photo.ply.0a1b2c3d.part"]
    for path in left:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
    run_of(settings).work()
    assert not any(path.exists() for path in left)

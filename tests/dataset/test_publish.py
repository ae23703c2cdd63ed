"""The last steps of a run: batches, their timing, and publications that were interrupted."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from sharp_cog.dataset.hub import HubError
from sharp_cog.dataset.index import OWN_FIELDS, PUBLIC_FIELDS, read_rows
from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.photo import Photo
from sharp_cog.dataset.publish import Publisher
from tests.dataset.client import REPO, engine_of, journal_of, run_of, settings_of, wait_until
from tests.dataset.hub_server import HubServer


def test_splats_are_published_with_an_index_and_a_card(tmp_path: Path, hub: HubServer) -> None:
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
        assert row["assumptions"] == "[]"
        splats = json.loads(row["splat_paths"])
        assert files[splats["ply"]].startswith(b"ply")
        assert files[splats["spz"]].startswith(b"\x1f\x8b")
        assert files[row["image_path"]].startswith(b"\x89PNG")
    assert b"path: data/train.jsonl" in files["README.md"]
    num_commits = len(hub.commits(REPO))
    assert num_commits <= 1 + 3, "the first one, and one for two photographs"
    run_of(settings).work()
    assert len(hub.commits(REPO)) == num_commits


def test_a_model_repository_works_too(tmp_path: Path, hub: HubServer) -> None:
    run_of(settings_of(tmp_path, hf_upload=True, hf_repo_id=REPO, hf_repo_type="model")).work()
    rows = read_rows(hub.files(REPO, "model")["data/train.jsonl"])
    assert len(rows) == 5
    assert rows[0]["image_url"].startswith(f"{hub.url}/{REPO}/resolve/main/photos/")


def test_only_the_chosen_formats_are_published(tmp_path: Path, hub: HubServer) -> None:
    formats = ("ply", "spz", "sog")
    settings = settings_of(
        tmp_path, count=2, formats=formats, hf_upload=True, hf_repo_id=REPO, hf_formats=("spz", "sog")
    )
    run_of(settings).work()
    assert {path.suffix for path in settings.gaussians_dir.iterdir()} == {".ply", ".spz", ".sog"}
    files = hub.files(REPO)
    assert {Path(name).suffix for name in files if name.startswith("photos/")} == {".png", ".spz", ".sog"}
    for row in read_rows(files["data/train.jsonl"]):
        assert row["ply_url"] == ""
        assert json.loads(row["splat_paths"]).keys() == json.loads(row["sha256"]).keys() == {"spz", "sog"}


def test_a_small_batch_is_published_after_a_while(tmp_path: Path, hub: HubServer) -> None:
    settings = settings_of(tmp_path, count=10, hf_upload=True, hf_repo_id=REPO, hf_index_flush_secs=0.3)
    thread = threading.Thread(target=run_of(settings, seconds=0.2).work)
    thread.start()
    wait_until(lambda: "data/train.jsonl" in hub.files(REPO))
    assert thread.is_alive()
    assert 0 < len(read_rows(hub.files(REPO)["data/train.jsonl"])) < 10
    thread.join(30)
    assert len(read_rows(hub.files(REPO)["data/train.jsonl"])) == 10


def test_splats_of_an_interrupted_publication_are_published_by_the_next_run(tmp_path: Path, hub: HubServer) -> None:
    settings = settings_of(tmp_path)
    run_of(settings).work()
    journal = journal_of(settings)
    for entry in list(journal.entries("done")):
        journal.advance(entry.photo.id, "made")
    journal.close()
    again = run_of(replace(settings, hf_upload=True, hf_repo_id=REPO))
    again.work()
    assert engine_of(again).made == []
    assert len(read_rows(hub.files(REPO)["data/train.jsonl"])) == 5


def test_a_hub_that_stays_down_ends_the_run_and_no_splat_is_made_again(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharp_cog.dataset.hub.MAX_TRIES", 2)
    settings = settings_of(
        tmp_path, count=12, hf_upload=True, hf_repo_id=REPO, hf_index_flush_every=2, upload_queue_max=1
    )
    run = run_of(settings)
    hub.fail = 10**6
    with pytest.raises(HubError, match="the hub failed 2 times"):
        run.work()
    num_made = len(engine_of(run).made)
    assert run.journal.counts()["made"] == num_made
    hub.fail = 0
    again = run_of(settings)
    again.work()
    assert len(engine_of(again).made) == 12 - num_made
    assert len(read_rows(hub.files(REPO)["data/train.jsonl"])) == 12


def test_splats_with_deleted_files_are_made_again(tmp_path: Path) -> None:
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


def test_splats_without_facts_for_the_index_are_made_again(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    journal = Journal(tmp_path / "journal.sqlite")
    journal.add([Photo(id="a", where="")])
    journal.advance("a", "made", image="a.jpg", splats={"ply": "a.ply"})
    for path in (settings.images_dir / "a.jpg", settings.gaussians_dir / "a.ply"):
        path.parent.mkdir(parents=True)
        path.touch()
    Publisher(settings, journal).requeue_incomplete()
    assert journal.counts() == {"seen": 1}

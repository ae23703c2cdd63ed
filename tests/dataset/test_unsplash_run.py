"""Whole runs whose photographs come from Unsplash."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image

from sharp_cog.config.dataset import DatasetSettings
from sharp_cog.dataset.index import read_rows
from tests.dataset.client import REPO, journal_of, run_of
from tests.dataset.hub_server import HubServer
from tests.dataset.unsplash_server import ACCESS_KEY, UnsplashServer


@pytest.fixture
def unsplash() -> Iterator[UnsplashServer]:
    server = UnsplashServer(12, focal_length="35.0")
    yield server
    server.close()


def settings_of(tmp_path: Path, unsplash: UnsplashServer, **more: Any) -> DatasetSettings:
    values: dict[str, Any] = {
        "source": "list",
        "unsplash_access_key": ACCESS_KEY,
        "unsplash_api_url": unsplash.url,
        "runs_dir": str(tmp_path / "runs"),
        "per_page": 4,
    }
    return DatasetSettings(**{**values, **more})


def downloads(unsplash: UnsplashServer) -> dict[str, int]:
    return {photo_id: count for photo_id in unsplash.ids if (count := unsplash.num_downloads(photo_id))}


def test_list_becomes_a_dataset_with_attribution(tmp_path: Path, unsplash: UnsplashServer, hub: HubServer) -> None:
    settings = settings_of(tmp_path, unsplash, hf_upload=True, hf_repo_id=REPO, unsplash_app_name="my_app")
    run_of(settings).work()
    assert journal_of(settings).counts() == {"done": 12}
    assert downloads(unsplash) == dict.fromkeys(unsplash.ids, 1), "each download is counted once"
    rows = {row["image_id"]: row for row in read_rows(hub.files(REPO)["data/train.jsonl"])}
    assert rows.keys() == set(unsplash.ids)
    row = rows["pic003"]
    assert row["unsplash_url"] == "https://unsplash.com/photos/pic003?utm_source=my_app&utm_medium=referral"
    assert (row["user_name"], row["user_username"]) == ("Ansel A.", "ansel")
    assert (row["license"], row["license_url"]) == ("Unsplash License", "https://unsplash.com/license")
    assert (row["tags"], row["topics_text"]) == ("tree,old town", "Nature")
    with Image.open(settings.images_dir / "pic003.jpg") as image:
        assert image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLength] == 35.0


def test_finished_and_given_up_photographs_are_not_fetched_again(tmp_path: Path, unsplash: UnsplashServer) -> None:
    unsplash.broken = {"pic001"}
    unsplash.failures = {"/photos/pic002/download": 1}
    settings = settings_of(tmp_path, unsplash)
    run_of(settings).work()
    assert journal_of(settings).counts() == {"done": 11, "failed": 1}
    assert downloads(unsplash)["pic001"] == 2
    before = downloads(unsplash)
    run_of(settings).work()
    assert downloads(unsplash) == before
    (failed,) = journal_of(settings).entries("failed")
    assert failed.photo.id == "pic001"


def test_max_images_and_max_scan_end_a_search(tmp_path: Path, unsplash: UnsplashServer) -> None:
    settings = settings_of(tmp_path, unsplash, source="search", queries=("tree",), max_images=3)
    run_of(settings).work()
    assert journal_of(settings).counts()["done"] == 3
    assert len(downloads(unsplash)) == 3
    run_of(settings).work()
    assert len(downloads(unsplash)) == 3, "the run has what it was to have"
    run_of(replace(settings, max_images=0, max_scan=6)).work()
    assert sorted(downloads(unsplash)) == unsplash.ids[:6]


def test_known_pages_are_jumped_over(tmp_path: Path, unsplash: UnsplashServer) -> None:
    settings = settings_of(tmp_path, unsplash, per_page=1, max_scan=8, list_seek_back_pages=1)
    run_of(settings).work()
    before = len(unsplash.pages())
    run_of(replace(settings, max_scan=0)).work()
    assert journal_of(settings).counts() == {"done": 12}
    asked = unsplash.pages()[before:]
    assert asked[:4] == [1, 2, 4, 8], "steps that double"
    assert not {5, 6} & set(asked)


def test_list_from_the_oldest_is_resumed(tmp_path: Path, unsplash: UnsplashServer) -> None:
    settings = settings_of(tmp_path, unsplash, order_by="oldest", per_page=2, max_scan=8, list_seek_back_pages=1)
    run_of(settings).work()
    before = len(unsplash.pages())
    run_of(replace(settings, max_scan=0)).work()
    assert journal_of(settings).counts() == {"done": 12}
    assert unsplash.pages()[before:] == [4, 5, 6]
    before = len(unsplash.pages())
    run_of(replace(settings, max_scan=0, list_auto_seek=False)).work()
    assert unsplash.pages()[before:] == [1, 2, 3, 4, 5, 6]


def test_rate_limit_ends_a_run_that_does_not_wait(tmp_path: Path, unsplash: UnsplashServer) -> None:
    unsplash.rate_limit = 9
    settings = settings_of(tmp_path, unsplash, stop_on_rate_limit=True)
    run_of(settings).work()
    journal = journal_of(settings)
    counts = journal.counts()
    assert counts["done"] == 4, "two requests a photograph, one for the page"
    assert "failed" not in counts
    assert not any(entry.tries for entry in journal.entries("seen"))


def test_run_that_waits_for_the_hour_stops_at_once(tmp_path: Path, unsplash: UnsplashServer) -> None:
    unsplash.rate_limit = 9
    settings = settings_of(tmp_path, unsplash)
    run = run_of(settings)
    thread = threading.Thread(target=run.work)
    thread.start()
    deadline = time.monotonic() + 20
    while run.journal.counts().get("done", 0) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    thread.join(0.5)
    assert thread.is_alive()
    run.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert "failed" not in run.journal.counts()
    unsplash.reset()
    run_of(settings).work()
    assert journal_of(settings).counts() == {"done": 12}
    assert downloads(unsplash) == dict.fromkeys(unsplash.ids, 1)


RANGES = {"order_by": "oldest", "range_size": 4, "range_lock_min_images": 0}
LOCKS = {"hf_upload": True, "hf_repo_id": REPO, "hf_use_locks": True, "claim_batch": 2, "hf_index_flush_every": 2}


def ranges_of(hub: HubServer, folder: str) -> set[str]:
    return {name.rpartition("/")[2] for name in hub.files(REPO) if name.startswith(f"ranges/{folder}/")}


def test_two_clients_share_the_ranges_of_a_list(tmp_path: Path, unsplash: UnsplashServer, hub: HubServer) -> None:
    # Neither fetches far ahead, so that both have something to do.
    more = {**RANGES, **LOCKS, "download_queue_max": 1}
    runs = [run_of(settings_of(tmp_path, unsplash, run_id=name, **more), 0.1) for name in ("a", "b")]
    threads = [threading.Thread(target=run.work) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert ranges_of(hub, "done") == {"0-3", "4-7", "8-11"}
    assert ranges_of(hub, "locks") == set()
    assert downloads(unsplash) == dict.fromkeys(unsplash.ids, 1)
    assert len(read_rows(hub.files(REPO)["data/train.jsonl"])) == 12
    before = unsplash.pages()
    run_of(settings_of(tmp_path, unsplash, run_id="c", **RANGES, **LOCKS)).work()
    assert unsplash.pages()[len(before) :] == [1], "the done prefix is not read again"


def test_range_with_a_hole_is_abandoned(tmp_path: Path, unsplash: UnsplashServer, hub: HubServer) -> None:

    oldest = unsplash.ids[::-1]
    unsplash.broken = {oldest[5]}
    run_of(settings_of(tmp_path, unsplash, **RANGES, **LOCKS)).work()
    assert ranges_of(hub, "done") == {"0-3", "8-11"}
    assert ranges_of(hub, "locks") == set()
    files = hub.files(REPO)
    given_up = json.loads(files["ranges/abandoned/4-7.json"])
    assert given_up.keys() == {"range_start", "range_end", "reason", "ts", "owner"}
    assert (given_up["range_start"], given_up["range_end"]) == (4, 7)
    assert oldest[5] in given_up["reason"]
    progress = json.loads(files["ranges/progress/4-7.json"])
    assert (progress["frontier"], progress["holes"], progress["pp"]) == (5, [[5, 5]], 4)
    # Another client leaves it alone for a while.
    run_of(settings_of(tmp_path, unsplash, run_id="other", **RANGES, **LOCKS)).work()
    assert unsplash.num_downloads(oldest[5]) == 2


def test_range_of_a_stopped_client_is_resumed_by_another(
    tmp_path: Path, unsplash: UnsplashServer, hub: HubServer
) -> None:

    first = settings_of(tmp_path, unsplash, **{**RANGES, "range_size": 8}, **LOCKS, max_images=3)
    run_of(first).work()
    assert ranges_of(hub, "locks") == set()
    assert ranges_of(hub, "done") == set()
    progress = json.loads(hub.files(REPO)["ranges/progress/0-7.json"])
    assert progress["frontier"] == 3
    run_of(settings_of(tmp_path, unsplash, run_id="other", **{**RANGES, "range_size": 8}, **LOCKS)).work()
    assert downloads(unsplash) == dict.fromkeys(unsplash.ids, 1)
    assert ranges_of(hub, "done") == {"0-7"}, "the list may grow behind the last range, which is not full"
    assert ranges_of(hub, "locks") == set()


def test_small_runs_use_no_ranges(tmp_path: Path, unsplash: UnsplashServer, hub: HubServer) -> None:
    settings = settings_of(tmp_path, unsplash, **{**RANGES, "range_lock_min_images": 30}, **LOCKS, max_images=2)
    run_of(settings).work()
    assert journal_of(settings).counts()["done"] == 2
    assert not [name for name in hub.files(REPO) if name.startswith("ranges/")]
    assert not [name for name in hub.files(REPO) if name.startswith("locks/")]

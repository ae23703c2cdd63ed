"""The first step of a run: which photographs it takes, retries, and leaves to other clients."""

from __future__ import annotations

from pathlib import Path

from sharp_cog.dataset.folder_store import FolderStore
from sharp_cog.dataset.leases import Leases
from sharp_cog.dataset.photo import Photo
from sharp_cog.errors import PredictionError
from tests.dataset.client import engine_of, journal_of, run_of, settings_of


def test_a_broken_image_is_tried_twice_and_the_others_are_made(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    (tmp_path / "in" / "broken.jpg").write_text("text")
    for _ in range(2):
        run_of(settings).work()
    journal = journal_of(settings)
    assert journal.counts() == {"done": 5, "failed": 1}
    (failed,) = journal.entries("failed")
    assert failed.tries == 2
    assert failed.error.startswith("invalid_image: ")


def test_a_failed_photograph_is_retried_in_the_same_run_without_fetching_again(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    run = run_of(settings)
    # The last photograph too: by then nothing else is left to do.
    engine_of(run).failures = {1: [ValueError("unexpected")], 4: [PredictionError("once")]}
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


def test_photographs_of_another_client_are_left_to_it_and_looked_at_again(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    settings = settings_of(tmp_path, claims_dir=str(shared), claim_batch=2)
    other = Leases(FolderStore(shared), "other", stale_s=3600)
    photos = list(run_of(settings).source.photos(lambda _: False))
    other.acquire(photos[1:3])
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


def test_the_lease_on_a_photograph_that_is_given_up_is_released(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    settings = settings_of(tmp_path, claims_dir=str(shared))
    (tmp_path / "in" / "broken.jpg").write_text("text")
    run_of(settings).work()
    assert journal_of(settings).counts() == {"done": 5, "failed": 1}
    assert list((shared / "locks").iterdir()) == []
    assert len(list((shared / "done").iterdir())) == 5


def test_max_scan_counts_known_photographs_too(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, max_scan=3)
    for _ in range(2):
        run_of(settings).work()
        assert journal_of(settings).counts() == {"done": 3}

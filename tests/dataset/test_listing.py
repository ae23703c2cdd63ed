"""A list that many clients read in ranges: when a range is finished, abandoned, released or lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from sharp_cog.dataset.folder_store import FolderStore
from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.leases import Lease
from sharp_cog.dataset.listing import RangedList
from sharp_cog.dataset.photo import Photo
from sharp_cog.dataset.ranges import Ranges
from sharp_cog.dataset.unsplash import Unsplash

UNUSABLE = 3
"""Place of a photograph that cannot be used."""


class List:
    """A list of photographs `p0`, `p1` ... in pages of four, in place of Unsplash's."""

    rate_limit_left = 50

    def __init__(self, num_photos: int) -> None:
        self.num_photos = num_photos
        self.pages: list[int] = []

    def page(self, number: int) -> list[Photo | None]:
        self.pages.append(number)
        places = range(4 * (number - 1), min(4 * number, self.num_photos))
        return [None if place == UNUSABLE else Photo(id=f"p{place}", where="", offset=place) for place in places]


Client = tuple[RangedList, Journal]


@pytest.fixture
def client_of(tmp_path: Path) -> Callable[..., Client]:
    """A client by its name, with ranges of eight photographs in a shared folder."""

    def make(name: str, num_photos: int = 16, max_scan: int = 0, stale_s: float = 3600) -> Client:
        journal = Journal(tmp_path / f"{name}.sqlite")
        ranges = Ranges(FolderStore(tmp_path / "shared"), name, size=8, page_size=4, stale_s=stale_s)
        listing = RangedList(cast(Unsplash, List(num_photos)), ranges, journal, max_scan=max_scan)
        return listing, journal

    return make


def take(client: Client) -> list[str]:
    """Record all photographs that a client gets in its journal, and return their ids."""
    listing, journal = client
    photos = list(listing.photos(journal.is_known))
    journal.add(photos)
    return [photo.id for photo in photos]


def names(tmp_path: Path, folder: str) -> list[str]:
    path = tmp_path / "shared" / "ranges" / folder
    return sorted(os.listdir(path)) if path.exists() else []


def test_a_range_is_finished_once_all_its_photographs_are(tmp_path: Path, client_of: Callable[..., Client]) -> None:
    listing, journal = client = client_of("first")
    ids = take(client)
    assert ids == [f"p{place}" for place in range(16) if place != UNUSABLE]
    journal.finish(ids[:6])
    listing.heartbeat(False)
    assert names(tmp_path, "done") == []
    journal.finish(ids[6:7])
    listing.heartbeat(False)
    assert names(tmp_path, "done") == ["0-7"]
    assert names(tmp_path, "locks") == ["8-15"]


def test_clients_read_different_ranges(client_of: Callable[..., Client]) -> None:
    (first, first_journal), second = client_of("first"), client_of("second")
    photos = first.photos(first_journal.is_known)
    assert next(photos).id == "p0"
    assert take(second) == [f"p{place}" for place in range(8, 16)]


def test_a_range_with_a_failed_photograph_is_abandoned(tmp_path: Path, client_of: Callable[..., Client]) -> None:
    listing, journal = client = client_of("first", num_photos=8)
    ids = take(client)
    journal.finish(name for name in ids if name != "p5")
    for _ in range(2):
        journal.fail("p5", "broken", state="seen")
    listing.heartbeat(False)
    assert names(tmp_path, "locks") == names(tmp_path, "done") == []
    about = json.loads((tmp_path / "shared/ranges/abandoned/0-7.json").read_text())
    assert about["reason"] == "no splat could be made of p5"
    progress = json.loads((tmp_path / "shared/ranges/progress/0-7.json").read_text())
    assert (progress["frontier"], progress["holes"]) == (5, [[5, 5]])


def test_the_end_of_a_run_releases_unfinished_ranges(tmp_path: Path, client_of: Callable[..., Client]) -> None:
    listing, journal = client = client_of("first", max_scan=3)
    ids = take(client)
    assert ids == ["p0", "p1", "p2"]
    journal.finish(ids[:2])
    listing.heartbeat(True)
    assert names(tmp_path, "locks") == []
    assert take(client_of("second", num_photos=8)) == ["p2", "p4", "p5", "p6", "p7"]


def test_a_range_at_the_end_of_the_list_is_never_finished(tmp_path: Path, client_of: Callable[..., Client]) -> None:
    """The list may grow."""
    listing, journal = client = client_of("first", num_photos=6)
    journal.finish(take(client))
    listing.heartbeat(True)
    assert names(tmp_path, "locks") == names(tmp_path, "done") == []


def test_a_range_that_another_client_took_over_is_left_to_it(
    tmp_path: Path, client_of: Callable[..., Client], caplog: pytest.LogCaptureFixture
) -> None:
    listing, _ = client = client_of("first", num_photos=8, stale_s=0.0)
    take(client)
    lock = tmp_path / "shared/ranges/locks/0-7"
    theirs = Lease(time=0.0, owner="second").encode()
    lock.write_bytes(theirs)
    listing.heartbeat(False)
    assert "another client took over the range 0-7 of the list" in caplog.text
    listing.heartbeat(True)
    assert lock.read_bytes() == theirs

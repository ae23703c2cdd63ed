"""Leases on ranges of a list, in a folder and on the hub."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from sharp_cog.dataset.folder_store import FolderStore
from sharp_cog.dataset.leases import Lease
from sharp_cog.dataset.ranges import Range, RangeProgress, Ranges, done_prefix
from sharp_cog.dataset.store import Change, Put, Store, View
from tests.dataset.client import repo_of
from tests.dataset.hub_server import HubServer

FIRST, SECOND, THIRD = (Range(start=start, end=start + 59) for start in (0, 60, 120))

StoreOf = Callable[[], Store]


@pytest.fixture(params=["folder", "hub"])
def store_of(request: pytest.FixtureRequest, tmp_path: Path, hub: HubServer) -> StoreOf:
    """A client's view of a store that all clients share."""
    if request.param == "folder":
        return lambda: FolderStore(tmp_path / "shared")
    return lambda: repo_of(hub)


def ranges_of(store: Store, owner: str, *, size: int = 60, stale_s: float = 3600) -> Ranges:
    return Ranges(store, owner, size=size, page_size=30, stale_s=stale_s)


def put(store: Store, **files: bytes) -> None:
    def decide(view: View) -> tuple[Change, None]:
        view.existing(files)
        return Change(operations=[Put(path=path, content=text) for path, text in files.items()], message="put"), None

    store.change(decide)


def files(store: Store, folder: str) -> dict[str, bytes]:
    def decide(view: View) -> tuple[Change, dict[str, bytes]]:
        return Change(operations=[], message=""), {
            name: view.read(f"{folder}/{name}") or b"" for name in view.names(folder)
        }

    return store.change(decide)


def age(store: Store, ranges: Ranges, seconds: float) -> None:
    """Let time pass for the lease of the first range and for the client that holds it."""

    def decide(view: View) -> tuple[Change, None]:
        lease = Lease.decode(view.read(FIRST.lock_path))
        assert lease is not None
        older = replace(lease, time=lease.time - seconds)
        return Change(operations=[Put(path=FIRST.lock_path, content=older.encode())], message="time passes"), None

    store.change(decide)
    if FIRST in ranges._heartbeats:
        ranges._heartbeats[FIRST] -= seconds


def test_each_client_leases_the_first_free_range(store_of: StoreOf) -> None:
    first, second = ranges_of(store_of(), "first"), ranges_of(store_of(), "second")
    assert first.acquire(None) == (FIRST, 0)
    assert second.acquire(None) == (SECOND, 60)
    assert first.acquire(None) == (THIRD, 120)
    assert second.acquire(180) is None, "the list ends here"
    locks = files(store_of(), "ranges/locks")
    assert locks.keys() == {"0-59", "60-119", "120-179"}
    lease = Lease.decode(locks["0-59"])
    assert lease is not None
    assert lease.owner == "first"
    assert abs(lease.time - time.time()) < 5


def test_the_size_is_rounded_up_to_whole_pages(tmp_path: Path) -> None:
    assert ranges_of(FolderStore(tmp_path), "first", size=31).acquire(None) == (FIRST, 0)


def test_ranges_that_are_done_in_other_sizes_are_skipped(store_of: StoreOf) -> None:
    store = store_of()
    put(store, **{"ranges/done/0-29": b"", "ranges/done/30-89": b"", "ranges/done/120-179": b""})
    ranges = ranges_of(store, "first")
    assert ranges.acquire(None) == (SECOND, 60), "its second half is not done"
    assert ranges.acquire(None) == (Range(start=180, end=239), 180)


def test_done_prefix_ends_at_the_first_gap() -> None:
    assert done_prefix([]) == 0
    assert done_prefix([FIRST, THIRD]) == 60
    assert done_prefix([THIRD, SECOND, FIRST]) == 180
    assert done_prefix([Range(start=0, end=299), Range(start=30, end=59), Range(start=300, end=329)]) == 330


def test_finishing_marks_a_range_done_and_releases_it(store_of: StoreOf) -> None:
    store = store_of()
    first, second = ranges_of(store, "first"), ranges_of(store_of(), "second")
    first.acquire(None)
    second.finish(FIRST)
    assert files(store, "ranges/done") == {}, "only the owner can finish a range"
    first.finish(FIRST)
    assert files(store, "ranges/done") == {"0-59": b""}
    assert files(store, "ranges/locks") == {}
    assert second.acquire(None) == (SECOND, 60)


def test_a_released_range_is_continued_by_another_client(store_of: StoreOf) -> None:
    store = store_of()
    first = ranges_of(store, "first")
    first.acquire(None)
    first.release(FIRST, RangeProgress(frontier=17, holes=((19, 21),), page=1))
    written = json.loads(files(store, "ranges/progress")["0-59.json"])
    about = {"range_start": 0, "range_end": 59, "frontier": 17, "holes": [[19, 21]], "page": 1, "pp": 30}
    assert {name: written[name] for name in about} == about
    assert ranges_of(store_of(), "second").acquire(None) == (FIRST, 17)


def test_an_abandoned_range_is_skipped_for_a_while(store_of: StoreOf) -> None:
    store = store_of()
    first = ranges_of(store, "first")
    first.acquire(None)
    first.abandon(FIRST, RangeProgress(frontier=3, holes=((3, 3),)), "photo3 is broken")
    written = json.loads(files(store, "ranges/abandoned")["0-59.json"])
    assert (written["reason"], written["owner"]) == ("photo3 is broken", "first")
    assert abs(written["ts"] - time.time()) < 5
    assert first.acquire(None) == (SECOND, 60)
    assert ranges_of(store_of(), "second").acquire(None) == (THIRD, 120)
    put(store, **{"ranges/abandoned/0-59.json": json.dumps({**written, "ts": written["ts"] - 3605}).encode()})
    assert ranges_of(store_of(), "later").acquire(None) == (FIRST, 3)
    assert files(store, "ranges/abandoned") == {}


def test_a_killed_client_keeps_its_range_and_a_silent_one_loses_it(store_of: StoreOf) -> None:
    store = store_of()
    ranges_of(store, "first").acquire(None)
    again = ranges_of(store_of(), "first")
    assert again.acquire(None) == (FIRST, 0)
    age(store, again, 3605)
    assert ranges_of(store_of(), "other").acquire(None) == (FIRST, 0)
    assert not again.heartbeat(FIRST, RangeProgress(frontier=1))
    assert Lease.decode(files(store, "ranges/locks")["0-59"]).owner == "other"  # type: ignore[union-attr]


def test_a_heartbeat_publishes_the_progress(store_of: StoreOf) -> None:
    store = store_of()
    ranges = ranges_of(store, "first")
    ranges.acquire(None)
    assert ranges.heartbeat(FIRST, RangeProgress(frontier=1))
    assert files(store, "ranges/progress") == {}, "it is not due yet"
    age(store, ranges, 1300)
    assert ranges.heartbeat(FIRST, RangeProgress(frontier=9))
    assert json.loads(files(store, "ranges/progress")["0-59.json"])["frontier"] == 9
    lease = Lease.decode(files(store, "ranges/locks")["0-59"])
    assert lease is not None
    assert time.time() - lease.time < 60


def test_clients_that_start_together_get_different_ranges(store_of: StoreOf) -> None:
    start = threading.Barrier(5)

    def want(number: int) -> Range | None:
        ranges = ranges_of(store_of(), f"client{number}")
        start.wait()
        acquired = ranges.acquire(None)
        return None if acquired is None else acquired[0]

    with ThreadPoolExecutor(5) as clients:
        won = [area for area in clients.map(want, range(5)) if area is not None]
    assert sorted(won) == [Range(start=60 * number, end=60 * number + 59) for number in range(5)]


@pytest.mark.parametrize("content", [b"", b"no json", b"[]", b'{"frontier": "far"}', b'{"frontier": 9999}'])
def test_a_range_with_broken_progress_starts_at_its_beginning(tmp_path: Path, content: bytes) -> None:
    store = FolderStore(tmp_path)
    put(store, **{"ranges/progress/0-59.json": content, "ranges/locks/README": b"", "ranges/locks/0-59": b"???"})
    assert ranges_of(store, "first").acquire(None) == (FIRST, 0)


def test_progress_lists_the_holes_after_the_frontier() -> None:
    area = Range(start=30, end=89)
    done = {30: True, 31: True, 32: False, 33: True, 34: False, 35: False}
    expected = RangeProgress(frontier=32, holes=((32, 32), (34, 35)), page=2)
    assert RangeProgress.from_places(area, done, page=2) == expected
    assert RangeProgress.from_places(area, {}, page=0) == RangeProgress(frontier=30)
    all_done = dict.fromkeys(range(30, 90), True)
    assert RangeProgress.from_places(area, all_done, page=3) == RangeProgress(frontier=90, page=3)

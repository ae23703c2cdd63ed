"""Who goes through which part of a list, in a folder and on the hub."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from sharp_cog.dataset.claims import Lock
from sharp_cog.dataset.folder_store import FolderStore
from sharp_cog.dataset.hub import HubRepo
from sharp_cog.dataset.ranges import Progress, Range, RangeDirs, Ranges, done_prefix
from sharp_cog.dataset.store import Change, Delete, Put, Store, View
from tests.dataset.hub_server import HubServer

REPO = "somebody/splats"
DIRS = RangeDirs(locks="ranges/locks", done="ranges/done", progress="ranges/progress", abandoned="ranges/abandoned")
FIRST, SECOND, THIRD = (Range(start=start, end=start + 59) for start in (0, 60, 120))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    server = HubServer()
    server.create(REPO, "dataset")
    yield server
    server.close()


@pytest.fixture(params=["folder", "hub"])
def store_of(request: pytest.FixtureRequest, tmp_path: Path, hub: HubServer) -> Callable[[], Store]:
    if request.param == "folder":
        return lambda: FolderStore(tmp_path / "shared")
    api = HfApi(endpoint=hub.url, token="hf_test")
    return lambda: HubRepo(REPO, "dataset", api=api, sleep=lambda seconds: time.sleep(seconds / 20))


def ranges_of(store: Store, owner: str, *, size: int = 60, stale_s: float = 3600) -> Ranges:
    return Ranges(store=store, owner=owner, size=size, page_size=30, dirs=DIRS, stale_s=stale_s)


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
    """Lets time go by for the lock of the first range, and for the one who holds it."""
    path = DIRS.lock(FIRST)

    def decide(view: View) -> tuple[Change, None]:
        lock = Lock.of(view.read(path))
        assert lock is not None
        older = replace(lock, time=lock.time - seconds)
        return Change(operations=[Put(path=path, content=older.text())], message="time goes by"), None

    store.change(decide)
    if FIRST in ranges._renewed:
        ranges._renewed[FIRST] -= seconds


def test_each_takes_the_first_that_is_free(store_of: Callable[[], Store]) -> None:
    first, second = ranges_of(store_of(), "first"), ranges_of(store_of(), "second")
    assert first.claim(None) == (FIRST, 0)
    assert second.claim(None) == (SECOND, 60)
    assert first.claim(None) == (THIRD, 120)
    assert second.claim(180) is None, "the list ends here"
    locks = files(store_of(), "ranges/locks")
    assert locks.keys() == {"0-59", "60-119", "120-179"}
    lock = Lock.of(locks["0-59"])
    assert lock is not None
    assert lock.owner == "first"
    assert abs(lock.time - time.time()) < 5


def test_a_size_is_rounded_up_to_whole_pages(store_of: Callable[[], Store]) -> None:
    assert ranges_of(store_of(), "first", size=31).claim(None) == (FIRST, 0)


def test_what_is_done_is_skipped_in_whatever_sizes(store_of: Callable[[], Store]) -> None:
    store = store_of()
    put(store, **{"ranges/done/0-29": b"", "ranges/done/30-89": b"", "ranges/done/120-179": b""})
    ranges = ranges_of(store, "first")
    assert ranges.claim(None) == (SECOND, 60), "the second half of it is not done"
    assert ranges.claim(None) == (Range(start=180, end=239), 180)


def test_a_done_prefix_has_no_gap() -> None:
    assert done_prefix([]) == 0
    assert done_prefix([FIRST, THIRD]) == 60
    assert done_prefix([THIRD, SECOND, FIRST]) == 180
    assert done_prefix([Range(start=0, end=299), Range(start=30, end=59), Range(start=300, end=329)]) == 330


def test_finishing_marks_it_done_and_ends_the_claim(store_of: Callable[[], Store]) -> None:
    store = store_of()
    first, second = ranges_of(store, "first"), ranges_of(store_of(), "second")
    first.claim(None)
    second.finish(FIRST)  # Not its own: nothing happens.
    assert files(store, "ranges/done") == {}
    first.finish(FIRST)
    assert files(store, "ranges/done") == {"0-59": b""}
    assert files(store, "ranges/locks") == {}
    assert second.claim(None) == (SECOND, 60)


def test_another_goes_on_where_one_has_stopped(store_of: Callable[[], Store]) -> None:
    store = store_of()
    first = ranges_of(store, "first")
    first.claim(None)
    first.give_back(FIRST, Progress(frontier=17, holes=((19, 21),), page=1))
    told = json.loads(files(store, "ranges/progress")["0-59.json"])
    about = {"range_start": 0, "range_end": 59, "frontier": 17, "holes": [[19, 21]], "page": 1, "pp": 30}
    assert {name: told[name] for name in about} == about
    assert ranges_of(store_of(), "second").claim(None) == (FIRST, 17)


def test_a_range_that_is_given_up_is_left_alone_for_a_while(store_of: Callable[[], Store]) -> None:
    store = store_of()
    first = ranges_of(store, "first")
    first.claim(None)
    first.give_up(FIRST, Progress(frontier=3, holes=((3, 3),)), "photo3 is broken")
    told = json.loads(files(store, "ranges/abandoned")["0-59.json"])
    assert (told["reason"], told["owner"]) == ("photo3 is broken", "first")
    assert abs(told["ts"] - time.time()) < 5
    assert first.claim(None) == (SECOND, 60)
    assert ranges_of(store_of(), "second").claim(None) == (THIRD, 120)
    put(store, **{"ranges/abandoned/0-59.json": json.dumps({**told, "ts": told["ts"] - 3605}).encode()})
    assert ranges_of(store_of(), "later").claim(None) == (FIRST, 3)
    assert files(store, "ranges/abandoned") == {}


def test_who_is_killed_has_its_range_again_and_who_is_silent_loses_it(store_of: Callable[[], Store]) -> None:
    store = store_of()
    ranges_of(store, "first").claim(None)
    again = ranges_of(store_of(), "first")
    assert again.claim(None) == (FIRST, 0)
    age(store, again, 3605)
    assert ranges_of(store_of(), "other").claim(None) == (FIRST, 0)
    assert not again.renew(FIRST, Progress(frontier=1))
    assert Lock.of(files(store, "ranges/locks")["0-59"]).owner == "other"  # type: ignore[union-attr]


def test_renewing_tells_how_far_it_is(store_of: Callable[[], Store]) -> None:
    store = store_of()
    ranges = ranges_of(store, "first")
    ranges.claim(None)
    assert ranges.renew(FIRST, Progress(frontier=1))
    assert files(store, "ranges/progress") == {}, "it is not due"
    age(store, ranges, 1300)
    assert ranges.renew(FIRST, Progress(frontier=9))
    assert json.loads(files(store, "ranges/progress")["0-59.json"])["frontier"] == 9
    lock = Lock.of(files(store, "ranges/locks")["0-59"])
    assert lock is not None
    assert time.time() - lock.time < 60


def test_of_many_who_want_one_each_gets_another(store_of: Callable[[], Store]) -> None:
    start = threading.Barrier(5)

    def want(number: int) -> Range | None:
        ranges = ranges_of(store_of(), f"client{number}")
        start.wait()
        claimed = ranges.claim(None)
        return None if claimed is None else claimed[0]

    with ThreadPoolExecutor(5) as clients:
        won = [area for area in clients.map(want, range(5)) if area is not None]
    assert sorted(won) == [Range(start=60 * number, end=60 * number + 59) for number in range(5)]


@pytest.mark.parametrize("content", [b"", b"no json", b"[]", b'{"frontier": "far"}', b'{"frontier": 9999}'])
def test_progress_that_cannot_be_read_begins_anew(tmp_path: Path, content: bytes) -> None:
    store = FolderStore(tmp_path)
    put(store, **{"ranges/progress/0-59.json": content, "ranges/locks/README": b"", "ranges/locks/0-59": b"???"})
    assert ranges_of(store, "first").claim(None) == (FIRST, 0)


def test_progress_is_where_the_first_gap_is() -> None:
    area = Range(start=30, end=89)
    done = {30: True, 31: True, 32: False, 33: True, 34: False, 35: False}
    assert Progress.of(area, done, page=2) == Progress(frontier=32, holes=((32, 32), (34, 35)), page=2)
    assert Progress.of(area, {}, page=0) == Progress(frontier=30)
    assert Progress.of(area, dict.fromkeys(range(30, 90), True), page=3) == Progress(frontier=90, page=3)


def test_deleting_needs_no_look(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    put(store, **{"a/b": b"1"})
    store.change(lambda view: (Change(operations=[Delete(path="a/b"), Delete(path="a/c")], message=""), None))
    assert files(store, "a") == {}

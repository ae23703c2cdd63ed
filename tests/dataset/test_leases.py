"""Leases on photographs, in a folder and on the hub."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from sharp_cog.dataset.folder_store import FolderStore
from sharp_cog.dataset.leases import Lease, Leases, lock_path
from sharp_cog.dataset.photo import Photo
from sharp_cog.dataset.store import Change, Put, Store, View
from tests.dataset.client import REPO, repo_of
from tests.dataset.hub_server import HubServer

PHOTOS = [Photo(id=f"photo{number}", where="nowhere", offset=number) for number in range(6)]

LeasesOf = Callable[..., Leases]


@pytest.fixture(params=["folder", "hub"])
def leases_of(request: pytest.FixtureRequest, tmp_path: Path, hub: HubServer) -> LeasesOf:
    """The leases of a client, by its name, in a store that all clients share."""

    def make(owner: str, stale_s: float = 3600) -> Leases:
        store: Store = FolderStore(tmp_path) if request.param == "folder" else repo_of(hub)
        return Leases(store, owner, stale_s=stale_s)

    return make


def ids(photos: list[Photo]) -> list[str]:
    return [photo.id for photo in photos]


def age(leases: Leases, seconds: float, *photo_ids: str) -> None:
    """Let time pass for lease files and for the client that holds them."""

    def decide(view: View) -> tuple[Change, None]:
        operations = []
        for photo_id in photo_ids:
            lease = Lease.decode(view.read(lock_path(photo_id)))
            assert lease is not None
            older = replace(lease, time=lease.time - seconds)
            operations.append(Put(path=lock_path(photo_id), content=older.encode()))
        return Change(operations=operations, message="time passes"), None

    leases._store.change(decide)
    leases._last_heartbeat -= seconds


def test_a_leased_photograph_is_refused_to_others(leases_of: LeasesOf) -> None:
    first, second = leases_of("first"), leases_of("second")
    assert ids(first.acquire(PHOTOS[:3]).ours) == ids(PHOTOS[:3])
    assert ids(second.acquire(PHOTOS).ours) == ids(PHOTOS[3:])
    assert ids(first.acquire(PHOTOS).ours) == ids(PHOTOS[:3]), "the owner keeps its own"


def test_a_released_photograph_is_free(leases_of: LeasesOf) -> None:
    first, second = leases_of("first"), leases_of("second")
    first.acquire(PHOTOS)
    second.release(ids(PHOTOS))
    assert second.acquire(PHOTOS).ours == [], "a client cannot release the leases of another one"
    first.release(["photo1", "photo4", "never-leased"])
    assert ids(second.acquire(PHOTOS).ours) == ["photo1", "photo4"]


def test_a_finished_photograph_is_done_for_all(leases_of: LeasesOf) -> None:
    first, second = leases_of("first"), leases_of("second")
    first.acquire(PHOTOS[:2])
    first.finish(["photo0"])
    acquired = second.acquire(PHOTOS[:2])
    assert (ids(acquired.ours), ids(acquired.done)) == ([], ["photo0"])
    assert ids(first.acquire(PHOTOS[:2]).ours) == ["photo1"]


def test_unneeded_leases_are_released_together(leases_of: LeasesOf) -> None:
    first, second = leases_of("first"), leases_of("second")
    first.acquire(PHOTOS)
    for photo_id in ("photo1", "photo2"):
        first.release_later(photo_id)
    assert second.acquire(PHOTOS).ours == []
    first.release_unneeded()
    assert ids(second.acquire(PHOTOS).ours) == ["photo1", "photo2"]
    first.release_all()
    assert ids(second.acquire(PHOTOS).ours) == ids(PHOTOS)


def test_a_killed_client_keeps_its_leases(leases_of: LeasesOf) -> None:
    leases_of("first").acquire(PHOTOS[:2])
    assert ids(leases_of("first").acquire(PHOTOS[:2]).ours) == ids(PHOTOS[:2])


def test_a_silent_client_loses_its_leases_and_learns_of_it(leases_of: LeasesOf) -> None:
    silent, other = leases_of("silent"), leases_of("other")
    silent.acquire(PHOTOS[:2])
    assert other.acquire(PHOTOS[:2]).ours == []
    age(silent, 3605, "photo0", "photo1")
    assert ids(other.acquire([PHOTOS[0]]).ours) == ["photo0"]
    assert silent.heartbeat() == {"photo0"}
    assert silent.acquire([PHOTOS[0]]).ours == []
    silent.release(["photo0"])
    assert silent.acquire([PHOTOS[0]]).ours == [], "a lost lease cannot be released"
    assert other.acquire([PHOTOS[1]]).ours == [], "the other lease was renewed"


def test_heartbeats_keep_leases(leases_of: LeasesOf) -> None:
    diligent, other = leases_of("diligent"), leases_of("other")
    diligent.acquire(PHOTOS[:2])
    for _ in range(4):
        age(diligent, 1300, "photo0", "photo1")
        assert diligent.heartbeat() == set()
    assert other.acquire(PHOTOS[:2]).ours == []


def test_clients_that_want_the_same_photographs_get_each_once(leases_of: LeasesOf) -> None:
    start = threading.Barrier(6)

    def want(number: int) -> list[str]:
        leases = leases_of(f"client{number}")
        start.wait()
        return ids(leases.acquire(PHOTOS).ours)

    with ThreadPoolExecutor(6) as clients:
        won = [photo_id for part in clients.map(want, range(6)) for photo_id in part]
    assert sorted(won) == ids(PHOTOS)


def test_one_of_many_clients_takes_over_a_stale_lease(leases_of: LeasesOf) -> None:
    dead = leases_of("dead")
    dead.acquire([PHOTOS[0]])
    age(dead, 3605, "photo0")
    start = threading.Barrier(6)

    def want(number: int) -> list[str]:
        leases = leases_of(f"client{number}")
        start.wait()
        return ids(leases.acquire([PHOTOS[0]]).ours)

    with ThreadPoolExecutor(6) as clients:
        won = [photo_id for part in clients.map(want, range(6)) for photo_id in part]
    assert won == ["photo0"]


@pytest.mark.parametrize("hours", [1, -1])
def test_a_wrong_clock_neither_takes_nor_loses_leases(
    leases_of: LeasesOf, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    normal, other = leases_of("normal", 600), leases_of("other", 600)
    normal.acquire([PHOTOS[0]])
    system = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: system() + 3600 * hours)
        assert ids(other.acquire(PHOTOS[:2]).ours) == ["photo1"]
    assert normal.acquire([PHOTOS[1]]).ours == []


def test_many_leases_are_one_commit(hub: HubServer) -> None:
    leases = Leases(repo_of(hub), "first", stale_s=3600)
    before = len(hub.commits(REPO))
    leases.acquire(PHOTOS)
    assert len(hub.commits(REPO)) == before + 1
    lines = hub.files(REPO)["locks/photo3"].decode().splitlines()
    assert abs(float(lines[0]) - time.time()) < 5
    assert lines[1:] == ["first", "3"]
    leases.acquire(PHOTOS)
    assert len(hub.commits(REPO)) == before + 1, "leases that exist need no commit"
    leases.finish(ids(PHOTOS))
    assert len(hub.commits(REPO)) == before + 2
    assert {name for name in hub.files(REPO) if "/" in name} == {f"done/{name}" for name in ids(PHOTOS)}


def test_a_lost_answer_makes_no_second_commit(hub: HubServer) -> None:
    leases = Leases(repo_of(hub), "first", stale_s=3600)
    before = len(hub.commits(REPO))
    hub.lose_answers = 1
    assert ids(leases.acquire(PHOTOS).ours) == ids(PHOTOS)
    assert len(hub.commits(REPO)) == before + 1
    age(leases, 1300, *ids(PHOTOS))
    hub.lose_answers = 1
    assert leases.heartbeat() == set()
    assert len(hub.commits(REPO)) == before + 3, "one is the test's own"
    hub.lose_answers = 1
    leases.finish(ids(PHOTOS))
    assert len(hub.commits(REPO)) == before + 4


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"1700000000\nabc\n5\n", Lease(time=1.7e9, owner="abc", note="5")),
        (b"1700000000.5\nabc", Lease(time=1700000000.5, owner="abc")),
        (b"1700000000", Lease(time=1.7e9, owner="")),
        (b"", None),
        (b"soon\nabc\n", None),
        (b"inf\nabc\n", None),
        (b"\xff\xfe\n", None),
        (None, None),
    ],
)
def test_leases_of_other_pipelines_are_read(content: bytes | None, expected: Lease | None) -> None:
    assert Lease.decode(content) == expected


@pytest.mark.parametrize("content", [b"???\n", b"1e300\nsomebody\n\n"])
def test_a_lease_without_a_time_or_from_the_far_future_is_free(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / PHOTOS[0].id).write_bytes(content)
    assert ids(Leases(FolderStore(tmp_path), "me", stale_s=60).acquire(PHOTOS).ours) == ids(PHOTOS)


def test_no_temporary_file_is_left_in_the_folder(tmp_path: Path) -> None:
    leases = Leases(FolderStore(tmp_path), "first", stale_s=3600)
    leases.acquire(PHOTOS)
    leases.finish(ids(PHOTOS))
    assert sorted(os.listdir(tmp_path / "locks")) == []
    assert sorted(os.listdir(tmp_path / "done")) == ids(PHOTOS)

"""Who does which photograph: folders and the hub, by the same table of situations."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from huggingface_hub import HfApi

from sharp_cog.dataset import hub as hub_module
from sharp_cog.dataset.claims import Claims, Lock
from sharp_cog.dataset.folder_store import FolderStore
from sharp_cog.dataset.hub import HubError, HubRepo
from sharp_cog.dataset.photo import Photo
from sharp_cog.dataset.store import Change, Put, View
from tests.dataset.hub_server import HubServer

REPO = "somebody/splats"
PHOTOS = [Photo(id=f"photo{number}", where="nowhere", offset=number) for number in range(6)]


@pytest.fixture(autouse=True)
def without_xet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    server = HubServer()
    server.create(REPO, "dataset")
    yield server
    server.close()


def repo_of(hub: HubServer) -> HubRepo:
    return HubRepo(
        REPO,
        "dataset",
        api=HfApi(endpoint=hub.url, token="hf_test"),
        sleep=lambda seconds: time.sleep(seconds / 20),
    )


def hub_claims(hub: HubServer, owner: str, stale_s: float = 3600) -> Claims:
    return Claims(repo_of(hub), owner, locks_dir="locks", done_dir="done", stale_s=stale_s)


def folder_claims(folder: Path, owner: str, stale_s: float = 3600) -> Claims:
    return Claims(FolderStore(folder), owner, locks_dir="locks", done_dir="done", stale_s=stale_s)


@pytest.fixture(params=["folder", "hub"])
def claims_of(request: pytest.FixtureRequest, tmp_path: Path, hub: HubServer) -> Callable[..., Claims]:
    def make(owner: str, stale_s: float = 3600) -> Claims:
        if request.param == "folder":
            return folder_claims(tmp_path, owner, stale_s)
        return hub_claims(hub, owner, stale_s)

    return make


def ids(photos: list[Photo]) -> list[str]:
    return [photo.id for photo in photos]


def test_what_one_holds_another_does_not_get(claims_of: Callable[..., Claims]) -> None:
    first, second = claims_of("first"), claims_of("second")
    assert ids(first.claim(PHOTOS[:3]).ours) == ids(PHOTOS[:3])
    assert ids(second.claim(PHOTOS).ours) == ids(PHOTOS[3:])
    assert ids(first.claim(PHOTOS).ours) == ids(PHOTOS[:3]), "its own it has still"


def test_what_is_given_back_another_gets(claims_of: Callable[..., Claims]) -> None:
    first, second = claims_of("first"), claims_of("second")
    first.claim(PHOTOS)
    second.release(ids(PHOTOS))  # Not its own: nothing happens.
    assert second.claim(PHOTOS).ours == []
    first.release(["photo1", "photo4", "never-claimed"])
    assert ids(second.claim(PHOTOS).ours) == ["photo1", "photo4"]


def test_what_is_done_nobody_gets(claims_of: Callable[..., Claims]) -> None:
    first, second = claims_of("first"), claims_of("second")
    first.claim(PHOTOS[:2])
    first.finish(["photo0"])
    claimed = second.claim(PHOTOS[:2])
    assert (ids(claimed.ours), ids(claimed.done)) == ([], ["photo0"])
    assert ids(first.claim(PHOTOS[:2]).ours) == ["photo1"]


def test_after_being_killed_an_owner_has_its_own_again(claims_of: Callable[..., Claims]) -> None:
    claims_of("first").claim(PHOTOS[:2])
    assert ids(claims_of("first").claim(PHOTOS[:2]).ours) == ids(PHOTOS[:2])


def age(claims: Claims, seconds: float, *photo_ids: str) -> None:
    """Lets time go by for locks, and for the one who holds them."""

    def decide(view: View) -> tuple[Change, None]:
        operations = []
        for photo_id in photo_ids:
            lock = Lock.of(view.read(claims.lock_path(photo_id)))
            assert lock is not None
            older = replace(lock, time=lock.time - seconds)
            operations.append(Put(path=claims.lock_path(photo_id), content=older.text()))
        return Change(operations=operations, message="time goes by"), None

    claims._store.change(decide)
    claims._renewed -= seconds


def test_who_is_silent_too_long_loses_and_is_told(claims_of: Callable[..., Claims]) -> None:
    silent, other = claims_of("silent"), claims_of("other")
    silent.claim(PHOTOS[:2])
    assert other.claim(PHOTOS[:2]).ours == []
    age(silent, 3605, "photo0", "photo1")
    assert ids(other.claim([PHOTOS[0]]).ours) == ["photo0"]
    assert silent.renew() == {"photo0"}
    assert silent.claim([PHOTOS[0]]).ours == []
    silent.release(["photo0"])
    assert silent.claim([PHOTOS[0]]).ours == [], "what is lost cannot be given back"
    assert other.claim([PHOTOS[1]]).ours == [], "what was not lost is renewed"


def test_who_renews_keeps(claims_of: Callable[..., Claims]) -> None:
    diligent, other = claims_of("diligent"), claims_of("other")
    diligent.claim(PHOTOS[:2])
    for _ in range(4):
        age(diligent, 1300, "photo0", "photo1")
        assert diligent.renew() == set()
    assert other.claim(PHOTOS[:2]).ours == []


def test_of_many_who_want_the_same_each_photograph_has_one(claims_of: Callable[..., Claims]) -> None:
    start = threading.Barrier(6)

    def want(number: int) -> list[str]:
        claims = claims_of(f"client{number}")
        start.wait()
        return ids(claims.claim(PHOTOS).ours)

    with ThreadPoolExecutor(6) as clients:
        won = [photo_id for part in clients.map(want, range(6)) for photo_id in part]
    assert sorted(won) == ids(PHOTOS)


def test_of_many_who_find_it_stale_one_takes_it_over(claims_of: Callable[..., Claims]) -> None:
    dead = claims_of("dead")
    dead.claim([PHOTOS[0]])
    age(dead, 3605, "photo0")
    start = threading.Barrier(6)

    def want(number: int) -> list[str]:
        claims = claims_of(f"client{number}")
        start.wait()
        return ids(claims.claim([PHOTOS[0]]).ours)

    with ThreadPoolExecutor(6) as clients:
        won = [photo_id for part in clients.map(want, range(6)) for photo_id in part]
    assert won == ["photo0"]


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clients_clock_does_not_count(
    claims_of: Callable[..., Claims], hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is ahead takes nothing over, and one that is behind loses nothing."""
    normal, other = claims_of("normal", 600), claims_of("other", 600)
    normal.claim([PHOTOS[0]])
    system = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: system() + 3600 * hours)
        assert ids(other.claim(PHOTOS[:2]).ours) == ["photo1"]
    assert normal.claim([PHOTOS[1]]).ours == []


def test_many_claims_are_one_commit(hub: HubServer) -> None:
    claims = hub_claims(hub, "first")
    before = len(hub.commits(REPO))
    claims.claim(PHOTOS)
    assert len(hub.commits(REPO)) == before + 1
    lines = hub.files(REPO)["locks/photo3"].decode().splitlines()
    assert abs(float(lines[0]) - time.time()) < 5
    assert lines[1:] == ["first", "3"]
    claims.claim(PHOTOS)
    assert len(hub.commits(REPO)) == before + 1, "what is ours needs no commit"
    claims.finish(ids(PHOTOS))
    assert len(hub.commits(REPO)) == before + 2
    assert {name for name in hub.files(REPO) if "/" in name} == {f"done/{name}" for name in ids(PHOTOS)}


def test_an_answer_that_is_lost_is_no_second_claim(hub: HubServer) -> None:
    hub.lose_answers = 1
    claims = hub_claims(hub, "first")
    before = len(hub.commits(REPO))
    assert ids(claims.claim(PHOTOS).ours) == ids(PHOTOS)
    assert len(hub.commits(REPO)) == before + 1
    hub.lose_answers = 1
    claims.finish(ids(PHOTOS))
    assert len(hub.commits(REPO)) == before + 2


def test_failures_of_the_hub_are_waited_out(hub: HubServer) -> None:
    hub.fail = 3
    assert ids(hub_claims(hub, "first").claim(PHOTOS).ours) == ids(PHOTOS)
    hub.fail = 10**6
    waits: list[float] = []
    repo = HubRepo(REPO, "dataset", api=HfApi(endpoint=hub.url, token="hf_test"), sleep=waits.append)
    with pytest.raises(HubError, match="could not be changed after"):
        Claims(repo, "second", locks_dir="other", done_dir="done", stale_s=60).claim(PHOTOS)
    assert max(waits) <= 45


def test_too_many_commits_are_waited_for(hub: HubServer) -> None:
    hub.rate_limit_after = 1
    hub.retry_after_s = 7
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if sum(waits) >= 7:
            hub.reset()

    repo = HubRepo(REPO, "dataset", api=HfApi(endpoint=hub.url, token="hf_test"), sleep=sleep)
    claims = Claims(repo, "first", locks_dir="locks", done_dir="done", stale_s=60)
    claims.claim(PHOTOS[:1])
    assert ids(claims.claim(PHOTOS).ours) == ids(PHOTOS)
    assert max(waits) <= 5, "short steps, so that Ctrl-C is heard"


def test_a_repository_that_is_not_ours_is_told(hub: HubServer) -> None:
    repo = HubRepo(REPO, "dataset", api=HfApi(endpoint=hub.url, token=False), sleep=lambda seconds: None)
    with pytest.raises(HubError, match="refuses \\(401\\)"):
        Claims(repo, "first", locks_dir="locks", done_dir="done", stale_s=60).claim(PHOTOS)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"1700000000\nabc\n5\n", Lock(time=1.7e9, owner="abc", note="5")),
        (b"1700000000.5\nabc", Lock(time=1700000000.5, owner="abc")),
        (b"1700000000", Lock(time=1.7e9, owner="")),
        (b"", None),
        (b"soon\nabc\n", None),
        (b"\xff\xfe\n", None),
        (None, None),
    ],
)
def test_locks_of_other_pipelines_are_read(content: bytes | None, expected: Lock | None) -> None:
    assert Lock.of(content) == expected


def test_a_lock_without_a_time_holds_nobody_off(hub: HubServer) -> None:
    api = HfApi(endpoint=hub.url, token="hf_test")
    api.upload_file(path_or_fileobj=b"???\n", path_in_repo="locks/photo0", repo_id=REPO, repo_type="dataset")
    assert ids(hub_claims(hub, "first").claim([PHOTOS[0]]).ours) == ["photo0"]


def test_no_scratch_is_left_in_the_folder(tmp_path: Path) -> None:
    claims = folder_claims(tmp_path, "first")
    claims.claim(PHOTOS)
    claims.finish(ids(PHOTOS))
    assert sorted(os.listdir(tmp_path / "locks")) == []
    assert sorted(os.listdir(tmp_path / "done")) == ids(PHOTOS)


def test_a_lock_of_the_far_future_holds_nobody_off_for_ever(tmp_path: Path) -> None:
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / PHOTOS[0].id).write_bytes(b"1e300\nsomebody\n\n")
    claims = Claims(FolderStore(tmp_path), "me", locks_dir="locks", done_dir="done", stale_s=60)
    assert ids(claims.claim(PHOTOS).ours) == ids(PHOTOS)


@pytest.mark.parametrize("date", ["", "yesterday", "Mon, 99 Foo 2026 99:99:99 GMT"])
def test_a_hub_whose_clock_is_none_is_told(monkeypatch: pytest.MonkeyPatch, hub: HubServer, date: str) -> None:
    repo = HubRepo(REPO, "dataset", api=HfApi(endpoint=hub.url, token="hf_test"), sleep=lambda seconds: None)
    answer = httpx2.Response(200, headers={"Date": date})
    monkeypatch.setattr("sharp_cog.dataset.hub.get_session", lambda: SimpleNamespace(head=lambda *_, **rest: answer))
    with pytest.raises(HubError, match="tells a time that is none"):
        repo.now()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("7", 7), ("inf", 300), ("nan", 300), ("-1", 300), ("9" * 12, 7200), (None, 300)],
)
def test_the_hub_cannot_make_anybody_wait_for_ever(text: str | None, expected: float) -> None:
    assert hub_module._seconds(text) == expected

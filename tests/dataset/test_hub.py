"""The hub as a store: failures, rate limits, and answers that cannot be used."""

from __future__ import annotations

from types import SimpleNamespace

import httpx2
import pytest
from huggingface_hub import HfApi

from sharp_cog.dataset import hub as hub_module
from sharp_cog.dataset.hub import HubError, HubRepo
from sharp_cog.dataset.store import Change, Put, View
from tests.dataset.client import REPO, repo_of
from tests.dataset.hub_server import HubServer


def put(repo: HubRepo, path: str = "a") -> None:
    def decide(view: View) -> tuple[Change, None]:
        return Change(operations=[Put(path=path, content=b"1")], message="put"), None

    repo.change(decide)


def test_failures_of_the_hub_are_retried(hub: HubServer) -> None:
    hub.fail = 3
    put(repo_of(hub))
    assert hub.files(REPO)["a"] == b"1"


def test_a_hub_that_stays_down_is_given_up(hub: HubServer) -> None:
    hub.fail = 10**6
    waits: list[float] = []
    with pytest.raises(HubError, match=r"the hub failed 30 times for somebody/splats: HfHubHTTPError: .*503"):
        put(repo_of(hub, sleep=waits.append))
    assert len(waits) == 29
    assert max(waits) <= 45


def test_the_rate_limit_is_waited_for(hub: HubServer) -> None:
    hub.rate_limit_after = 1
    hub.retry_after_s = 7
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        hub.reset()

    repo = repo_of(hub, sleep)
    put(repo, "a")
    put(repo, "b")
    assert hub.files(REPO)["b"] == b"1"
    assert waits == [7]


@pytest.mark.parametrize(
    ("header", "expected"),
    [("7", 7), ("inf", 300), ("nan", 300), ("-1", 300), ("9" * 12, 7200), (None, 300)],
)
def test_the_wait_at_the_rate_limit_is_bounded(header: str | None, expected: float) -> None:
    assert hub_module._retry_after_s(header) == expected


def test_a_token_without_rights_is_refused_at_once(hub: HubServer) -> None:
    waits: list[float] = []
    repo = HubRepo(REPO, "dataset", api=HfApi(endpoint=hub.url, token=False), sleep=waits.append)
    with pytest.raises(HubError, match=r"the hub refuses \(401\).*HF_TOKEN may write there"):
        put(repo)
    assert waits == []


@pytest.mark.parametrize("date", ["", "yesterday", "Mon, 99 Foo 2026 99:99:99 GMT", None])
def test_a_hub_without_a_readable_clock_is_refused(
    monkeypatch: pytest.MonkeyPatch, hub: HubServer, date: str | None
) -> None:
    answer = httpx2.Response(200, headers={} if date is None else {"Date": date})
    monkeypatch.setattr("sharp_cog.dataset.hub.get_session", lambda: SimpleNamespace(head=lambda *_, **rest: answer))
    with pytest.raises(HubError, match=r"sends (no|an invalid) Date header"):
        repo_of(hub).now()


def test_names_and_existing_paths_are_those_of_a_commit(hub: HubServer) -> None:
    repo = repo_of(hub)
    put(repo, "folder/a")
    before = repo.look()
    put(repo, "folder/b")
    assert before.names("folder") == {"a"}
    hub.page = 1  # The client asks for one page after another.
    assert repo.look().names("folder") == {"a", "b"}
    assert before.names("missing") == set()
    paths = [f"folder/{number}" for number in range(600)]
    assert repo.look().existing(["folder/a", "folder/b", *paths]) == {"folder/a", "folder/b"}
    assert before.existing(["folder/b"]) == set()
    assert (before.read("folder/a"), before.read("folder/b")) == (b"1", None)
    stat = before.stat("folder/a")
    assert stat is not None
    assert stat.size == 1
    assert before.stat("folder") is None
    assert before.stat("missing") is None

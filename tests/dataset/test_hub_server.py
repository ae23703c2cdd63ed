"""The dataset host on loopback, asked by the real client."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile, RepoFolder
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.dataset.hub_server import HubServer

REPO = "someone/photos"
LARGE = bytes(range(256)) * 4000
FILES = {
    "README.md": b"---\nlicense: mit\n---\n# Photos\n",
    "data/train/a b+é#%41.txt": b"small",
    "data/train/0.bin": LARGE,
    "data/test/1.txt": b"many words " * 1000,
    "data/empty": b"",
}


@pytest.fixture(autouse=True)
def without_xet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    server = HubServer()
    yield server
    server.close()


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    found = HfApi(endpoint=hub.url, token="hf_test")
    found.create_repo(REPO, repo_type="dataset")
    return found


def commit(
    api: HfApi, files: dict[str, bytes], parent: str | None = None, message: str = "more", repo_type: str = "dataset"
) -> CommitInfo:
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(REPO, operations, commit_message=message, parent_commit=parent, repo_type=repo_type)


def written(hub: HubServer) -> dict[str, bytes]:
    return {path: content for path, content in hub.files(REPO).items() if path != ".gitattributes"}


def test_creating_again_changes_nothing_and_is_refused_unless_allowed(hub: HubServer, api: HfApi) -> None:
    commit(api, FILES)
    assert api.create_repo(REPO, repo_type="dataset", exist_ok=True) == f"{hub.url}/datasets/{REPO}"
    with pytest.raises(HfHubHTTPError, match="already created") as caught:
        api.create_repo(REPO, repo_type="dataset")
    assert caught.value.response.status_code == 409
    assert len(hub.commits(REPO)) == 2
    assert api.repo_exists(REPO, repo_type="dataset")
    assert not api.repo_exists(REPO, repo_type="model")


@pytest.mark.parametrize("use_lfs", [True, False])
def test_a_commit_is_read_back(hub: HubServer, api: HfApi, tmp_path: Path, use_lfs: bool) -> None:
    hub.use_lfs = use_lfs
    done = commit(api, FILES, message="first photos")
    assert written(hub) == FILES
    first, second = hub.commits(REPO)
    assert (second.oid, second.parent, second.message) == (done.oid, first.oid, "first photos")
    assert second.changed == sorted(FILES)
    for path, content in FILES.items():
        for revision in (None, done.oid):
            found = api.hf_hub_download(REPO, path, repo_type="dataset", revision=revision, cache_dir=tmp_path)
            assert Path(found).read_bytes() == content
            assert done.oid in found
    assert sorted(api.list_repo_files(REPO, repo_type="dataset")) == sorted([".gitattributes", *FILES])
    assert ("PUT" in {method for method, _ in hub.seen}) == use_lfs


def test_a_snapshot_is_read_back(api: HfApi, tmp_path: Path) -> None:
    commit(api, FILES)
    found = api.snapshot_download(REPO, repo_type="dataset", cache_dir=tmp_path)
    assert {path: Path(found, path).read_bytes() for path in FILES} == FILES


def test_a_file_on_disk_and_a_folder_are_uploaded(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    Path(tmp_path, "large").write_bytes(LARGE)
    Path(tmp_path, "small").write_bytes(b"text")
    api.upload_file(
        path_or_fileobj=Path(tmp_path, "large"), path_in_repo="one/large", repo_id=REPO, repo_type="dataset"
    )
    api.upload_folder(folder_path=tmp_path, path_in_repo="two", repo_id=REPO, repo_type="dataset")
    assert written(hub) == {"one/large": LARGE, "two/large": LARGE, "two/small": b"text"}


def test_what_is_as_it_was_is_not_committed(hub: HubServer, api: HfApi) -> None:
    done = commit(api, FILES)
    again = commit(api, FILES)
    assert again.oid == done.oid
    assert len(hub.commits(REPO)) == 2


def test_models_and_datasets_of_one_name_are_two(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    api.create_repo(REPO, repo_type="model")
    commit(api, {"model": LARGE}, repo_type="model")
    assert "model" in hub.files(REPO, "model")
    assert written(hub) == {}
    assert Path(api.hf_hub_download(REPO, "model", cache_dir=tmp_path)).read_bytes() == LARGE
    assert api.model_info(REPO).sha == hub.commits(REPO, "model")[-1].oid


def test_what_a_repository_says_about_itself(hub: HubServer, api: HfApi) -> None:
    done = commit(api, FILES, message="first\n\nand why")
    later = commit(api, {"more": b"more"})
    info = api.dataset_info(REPO, files_metadata=True)
    assert info.sha == later.oid
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or []}
    assert sizes.items() >= {path: len(content) for path, content in FILES.items()}.items()
    before = api.dataset_info(REPO, revision=done.oid)
    assert before.sha == done.oid
    assert "more" not in {sibling.rfilename for sibling in before.siblings or []}
    assert [branch.target_commit for branch in api.list_repo_refs(REPO, repo_type="dataset").branches] == [later.oid]
    history = api.list_repo_commits(REPO, repo_type="dataset")
    assert [entry.commit_id for entry in history] == [entry.oid for entry in reversed(hub.commits(REPO))]
    assert history[1].title == "first"
    assert history[1].created_at.timestamp() == pytest.approx(hub.commits(REPO)[1].time, abs=0.01)


@pytest.mark.parametrize("page", [1, 2, 1000])
def test_listings(hub: HubServer, api: HfApi, page: int) -> None:
    hub.page = page
    commit(api, FILES)
    flat = list(api.list_repo_tree(REPO, "data", repo_type="dataset"))
    assert [entry.path for entry in flat] == ["data/empty", "data/test", "data/train"]
    assert [type(entry) for entry in flat] == [RepoFile, RepoFolder, RepoFolder]
    deep = {entry.path: entry for entry in api.list_repo_tree(REPO, repo_type="dataset", recursive=True)}
    assert deep.keys() == {".gitattributes", "data", "data/test", "data/train", *FILES}
    large = deep["data/train/0.bin"]
    assert isinstance(large, RepoFile)
    assert large.lfs is not None
    assert large.size == len(LARGE)
    infos = api.get_paths_info(REPO, ["data/train", "data/empty", "missing"], repo_type="dataset")
    assert [info.path for info in infos] == ["data/train", "data/empty"]
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(REPO, "missing", repo_type="dataset"))


def test_plain_requests(hub: HubServer, api: HfApi) -> None:
    done = commit(api, FILES)
    url = f"{hub.url}/datasets/{REPO}/resolve/main/data/train/0.bin"
    head, whole = httpx2.head(url), httpx2.get(url)
    assert whole.content == LARGE
    assert head.headers["Content-Length"] == str(len(LARGE))
    assert head.headers["X-Repo-Commit"] == whole.headers["X-Repo-Commit"] == done.oid
    assert head.headers["ETag"] == whole.headers["ETag"]
    for asked, content in {"5-9": LARGE[5:10], "1023990-": LARGE[-10:], "-7": LARGE[-7:]}.items():
        part = httpx2.get(url, headers={"Range": f"bytes={asked}"})
        assert (part.status_code, part.content) == (206, content)
    assert httpx2.get(url, headers={"Range": f"bytes={len(LARGE)}-"}).status_code == 416


def test_deleting(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    before = commit(api, FILES).oid
    api.delete_file("data/empty", REPO, repo_type="dataset")
    api.delete_folder("data/train", REPO, repo_type="dataset")
    assert written(hub).keys() == {"README.md", "data/test/1.txt"}
    assert hub.commits(REPO)[2].changed == ["data/empty"]
    assert len(hub.commits(REPO)[3].changed) == 2
    assert hub.files(REPO, revision=before).keys() == {".gitattributes", *FILES}
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download(REPO, "data/empty", repo_type="dataset", cache_dir=tmp_path)
    api.hf_hub_download(REPO, "data/empty", repo_type="dataset", revision=before, cache_dir=tmp_path)


def test_deleting_what_is_not_there_refuses_the_whole_commit(hub: HubServer, api: HfApi) -> None:
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd("new", b"new"),
        CommitOperationDelete("missing"),
    ]
    with pytest.raises(RemoteEntryNotFoundError, match="A file with this name doesn't exist") as caught:
        api.create_commit(REPO, operations, commit_message="both", repo_type="dataset")
    assert caught.value.response.status_code == 404
    assert written(hub) == {}
    assert len(hub.commits(REPO)) == 1


def test_a_stale_parent_is_refused(hub: HubServer, api: HfApi) -> None:
    first = hub.commits(REPO)[-1].oid
    second = commit(api, {"a": b"1"}, parent=first).oid
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as caught:
        commit(api, {"a": b"2", "b": LARGE}, parent=first)
    assert type(caught.value) is HfHubHTTPError
    assert caught.value.response.status_code == 412
    assert [entry.oid for entry in hub.commits(REPO)] == [first, second]
    assert written(hub) == {"a": b"1"}
    commit(api, {"a": b"2"}, parent=second)
    assert written(hub) == {"a": b"2"}


def test_of_many_with_one_parent_one_wins(hub: HubServer, api: HfApi) -> None:
    parent = hub.commits(REPO)[-1].oid
    hub.latency_s = 0.02
    together = threading.Barrier(8)
    won: list[int] = []
    refused: list[int] = []

    def publish(number: int) -> None:
        together.wait()
        try:
            commit(api, {f"{number}": LARGE + bytes([number]), "who": b"%d" % number}, parent=parent)
            won.append(number)
        except HfHubHTTPError as error:
            refused.append(error.response.status_code)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert refused == [412] * 7
    assert len(hub.commits(REPO)) == 2
    assert written(hub) == {f"{won[0]}": LARGE + bytes(won), "who": b"%d" % won[0]}


def test_a_lost_answer_leaves_the_commit_done(hub: HubServer, api: HfApi) -> None:
    parent = hub.commits(REPO)[-1].oid
    hub.lose_answers = 1
    with pytest.raises(httpx2.RemoteProtocolError):
        commit(api, FILES, parent=parent)
    assert written(hub) == FILES
    assert len(hub.commits(REPO)) == 2
    with pytest.raises(HfHubHTTPError) as caught:
        commit(api, {"other": b""}, parent=parent)
    assert caught.value.response.status_code == 412
    commit(api, {"other": b""})
    assert len(hub.commits(REPO)) == 3


def test_a_failure_leaves_the_commit_undone(hub: HubServer, api: HfApi) -> None:
    hub.fail = 2
    for _ in range(2):
        with pytest.raises(HfHubHTTPError) as caught:
            commit(api, FILES)
        assert caught.value.response.status_code == 503
        assert len(hub.commits(REPO)) == 1
    commit(api, FILES)
    assert written(hub) == FILES


def test_the_limit_on_commits(hub: HubServer, api: HfApi) -> None:
    hub.rate_limit_after, hub.retry_after_s = 2, 17
    commit(api, {"0": b"0"})
    commit(api, {"1": b"1"})
    with pytest.raises(HfHubHTTPError) as caught:
        commit(api, {"2": b"2"})
    assert caught.value.response.status_code == 429
    assert caught.value.response.headers["Retry-After"] == "17"
    assert written(hub).keys() == {"0", "1"}
    hub.reset()
    commit(api, {"2": b"2"})
    assert written(hub).keys() == {"0", "1", "2"}


def test_an_upload_that_is_not_what_it_was_said_to_be_is_refused(hub: HubServer, api: HfApi) -> None:
    answer = httpx2.put(f"{hub.url}/lfs/dataset/{REPO}/{'0' * 64}", content=b"something")
    assert answer.status_code == 400


def test_what_is_not_there_and_who_may_not(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info("someone/else")
    with pytest.raises(RepositoryNotFoundError):
        api.create_commit("someone/else", [CommitOperationAdd("a", b"")], commit_message="a", repo_type="dataset")
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(REPO, "a", repo_type="dataset", revision="0" * 40, cache_dir=tmp_path)
    with pytest.raises(HfHubHTTPError) as caught:
        commit(HfApi(endpoint=hub.url, token=False), {"a": b""})
    assert caught.value.response.status_code == 401
    assert written(hub) == {}


def test_xet_is_refused(hub: HubServer, api: HfApi, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hf_xet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    with pytest.raises(ConnectionError, match="xet-write-token"):
        commit(api, {"large": LARGE})
    assert written(hub) == {}


def test_another_process(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    program = f"""
import pathlib, huggingface_hub as hf
large = bytes(range(256)) * 4000
hf.upload_file(path_or_fileobj=large, path_in_repo="a/large", repo_id="{REPO}", repo_type="dataset")
found = hf.hf_hub_download("{REPO}", "a/large", repo_type="dataset")
assert pathlib.Path(found).read_bytes() == large
"""
    environment = {**os.environ, **hub.environment, "HF_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)
    assert written(hub) == {"a/large": LARGE}

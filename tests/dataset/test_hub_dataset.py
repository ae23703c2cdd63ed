"""A published dataset: its index with many writers, and its files read back by the library `datasets`."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from sharp_cog.dataset.hub import HubError
from sharp_cog.dataset.hub_dataset import Finished, HubDataset
from sharp_cog.dataset.index import OWN_FIELDS, PUBLIC_FIELDS, read_rows
from tests.dataset.client import REPO, repo_of
from tests.dataset.hub_server import HubServer


def dataset_of(hub: HubServer, tmp_path: Path, name: str = "first", subdir: str = "photos") -> HubDataset:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    repo = repo_of(hub, sleep=lambda seconds: None)
    return HubDataset(repo, subdir=subdir, index_path="data/train.jsonl", cache=folder / ".index.jsonl", leases=None)


def write_file(hub: HubServer, path: str, content: bytes) -> None:
    """Commit a file as another person would."""
    api = HfApi(endpoint=hub.url, token="hf_test")
    operation = CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)
    api.create_commit(REPO, [operation], commit_message="by hand", repo_type="dataset")


def finished(tmp_path: Path, *names: str) -> list[Finished]:
    for name in names:
        (tmp_path / f"{name}.jpg").write_bytes(b"\xff\xd8" + name.encode())
        (tmp_path / f"{name}.ply").write_bytes(b"ply\n" + name.encode() * 3000)
        (tmp_path / f"{name}.spz").write_bytes(b"\x1f\x8b" + name.encode())
    return [
        Finished(
            id=name,
            image=tmp_path / f"{name}.jpg",
            splats={"ply": tmp_path / f"{name}.ply", "spz": tmp_path / f"{name}.spz"},
            row={
                "user_name": "Ansel \u2028 \u00c4.",  # A line separator, at which some readers end a line.
                "sha256": json.dumps({"ply": hashlib.sha256((tmp_path / f"{name}.ply").read_bytes()).hexdigest()}),
                "num_gaussians": "3",
            },
        )
        for name in names
    ]


def index(hub: HubServer) -> list[str]:
    return [row["image_id"] for row in read_rows(hub.files(REPO)["data/train.jsonl"])]


def test_the_library_datasets_reads_it_back(hub: HubServer, tmp_path: Path) -> None:
    dataset_of(hub, tmp_path).publish(finished(tmp_path, "a", "b"))
    dataset_of(hub, tmp_path, "second").publish(finished(tmp_path, "c"))
    program = f"import datasets, json; print(json.dumps(datasets.load_dataset({REPO!r})['train'].to_list()))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, **hub.environment, "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["image_id"] for row in rows] == ["a", "b", "c"]
    files = hub.files(REPO)
    for row in rows:
        assert list(row) == [*PUBLIC_FIELDS, *OWN_FIELDS]
        assert all(isinstance(value, str) for value in row.values())
        assert row["user_name"] == "Ansel \u2028 \u00c4."
        splats = json.loads(row["splat_paths"])
        assert hashlib.sha256(files[splats["ply"]]).hexdigest() == json.loads(row["sha256"])["ply"]
        assert row["spz_url"] == f"{hub.url}/datasets/{REPO}/resolve/main/{splats['spz']}"
        assert files[row["image_path"]].startswith(b"\xff\xd8")
    assert (
        "Apple Machine Learning Research Model is licensed under the Apple Machine Learning Research Model License "
        "Agreement."
    ) in files["README.md"].decode()


def test_a_dataset_card_that_exists_is_kept(hub: HubServer, tmp_path: Path) -> None:
    write_file(hub, "README.md", b"# mine\n")
    dataset_of(hub, tmp_path).publish(finished(tmp_path, "a"))
    assert hub.files(REPO)["README.md"] == b"# mine\n"


def test_a_photograph_that_another_client_published_stays(hub: HubServer, tmp_path: Path) -> None:
    first, second = dataset_of(hub, tmp_path, "first"), dataset_of(hub, tmp_path, "second")
    first.publish(finished(tmp_path, "a", "b"))
    second.publish(finished(tmp_path, "b", "c"))
    assert index(hub) == ["a", "b", "c"]
    first.publish(finished(tmp_path, "c", "d"))
    assert index(hub) == ["a", "b", "c", "d"]


def test_a_broken_index_stays_unchanged(hub: HubServer, tmp_path: Path) -> None:
    write_file(hub, "data/train.jsonl", b"{\n")
    with pytest.raises(HubError, match="has a line that is no JSON object"):
        dataset_of(hub, tmp_path).publish(finished(tmp_path, "a"))
    assert hub.files(REPO)["data/train.jsonl"] == b"{\n"


@pytest.mark.parametrize("in_advance", [True, False])
def test_a_failed_upload_is_repeated(hub: HubServer, tmp_path: Path, in_advance: bool) -> None:
    """The library wraps the error of an upload in a RuntimeError."""
    hub.fail_uploads = 2
    dataset = dataset_of(hub, tmp_path)
    photos = finished(tmp_path, "a", "b")
    if in_advance:
        dataset.upload(photos[0])
    dataset.publish(photos)
    assert hub.fail_uploads == 0
    for name in ("a", "b"):
        assert hub.files(REPO)[f"photos/{name}/{name}.ply"] == (tmp_path / f"{name}.ply").read_bytes()


def test_a_lost_answer_publishes_nothing_twice(hub: HubServer, tmp_path: Path) -> None:
    hub.lose_answers = 2
    dataset = dataset_of(hub, tmp_path)
    dataset.publish(finished(tmp_path, "a", "b"))
    dataset.publish(finished(tmp_path, "c"))
    assert index(hub) == ["a", "b", "c"]
    assert len(hub.commits(REPO)) == 3
    assert [path.name for path in (tmp_path / "first").iterdir()] == [".index.jsonl"], "no draft is left"


def test_large_files_are_uploaded_once(hub: HubServer, tmp_path: Path) -> None:
    dataset = dataset_of(hub, tmp_path)
    photos = finished(tmp_path, "a", "b")
    for photo in photos:
        dataset.upload(photo)
    assert len(hub.commits(REPO)) == 1
    uploads = [path for method, path in hub.seen if method == "PUT"]
    assert len(uploads) == 6
    hub.fail = 2
    dataset.publish(photos)
    again = [path for method, path in hub.seen if method == "PUT"][len(uploads) :]
    assert not set(again) & set(uploads)
    assert index(hub) == ["a", "b"]


def test_without_a_subfolder_photographs_lie_at_the_top(hub: HubServer, tmp_path: Path) -> None:
    photo = replace(finished(tmp_path, "a")[0], splats={"spz": tmp_path / "a.spz"})
    dataset_of(hub, tmp_path, subdir="/").publish([photo])
    assert {"a/a.jpg", "a/a.spz"} <= hub.files(REPO).keys()
    (row,) = read_rows(hub.files(REPO)["data/train.jsonl"])
    assert row["ply_url"] == "", "there is none"

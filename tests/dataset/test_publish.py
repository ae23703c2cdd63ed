"""What is published, read back with the library `datasets`, and an index that many write to."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from sharp_cog.dataset.hub import HubError, HubRepo
from sharp_cog.dataset.index import OWN_FIELDS, PUBLIC_FIELDS, read_rows, write_rows
from sharp_cog.dataset.publish import Finished, Publisher
from tests.dataset.hub_server import HubServer

REPO = "somebody/splats"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    server = HubServer()
    server.create(REPO, "dataset")
    yield server
    server.close()


def publisher_of(hub: HubServer, tmp_path: Path, name: str = "first", subdir: str = "photos") -> Publisher:
    repo = HubRepo(REPO, "dataset", api=api_of(hub), sleep=lambda seconds: None)
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    return Publisher(repo, subdir=subdir, index_path="data/train.jsonl", cache=folder / ".index.jsonl", claims=None)


def api_of(hub: HubServer) -> HfApi:
    return HfApi(endpoint=hub.url, token="hf_test")


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
                "user_name": "Ansel \u2028 \u00c4.",  # A line separator, which some readers end a line at.
                "sha256": json.dumps({"ply": hashlib.sha256((tmp_path / f"{name}.ply").read_bytes()).hexdigest()}),
                "num_gaussians": "3",
            },
        )
        for name in names
    ]


def index(hub: HubServer) -> list[str]:
    return [row["image_id"] for row in read_rows(hub.files(REPO)["data/train.jsonl"])]


def reads(hub: HubServer) -> list[str]:
    return [path for method, path in hub.seen if method == "GET" and "/resolve/" in path]


@pytest.mark.parametrize("goes_ahead", [True, False])
def test_an_upload_that_fails_is_sent_again(hub: HubServer, tmp_path: Path, goes_ahead: bool) -> None:
    """The library tells of it by an error of no kind in particular."""
    hub.fail_uploads = 2
    publisher = publisher_of(hub, tmp_path)
    photos = finished(tmp_path, "a", "b")
    if goes_ahead:
        publisher.send_ahead(photos[0])
    publisher.publish(photos)
    assert hub.fail_uploads == 0
    for name in ("a", "b"):
        assert hub.files(REPO)[f"photos/{name}/{name}.ply"] == (tmp_path / f"{name}.ply").read_bytes()


def test_it_is_read_back_by_datasets(hub: HubServer, tmp_path: Path) -> None:
    publisher_of(hub, tmp_path).publish(finished(tmp_path, "a", "b"))
    publisher_of(hub, tmp_path, "second").publish(finished(tmp_path, "c"))
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


def test_a_card_that_somebody_has_written_stays(hub: HubServer, tmp_path: Path) -> None:
    api_of(hub).upload_file(path_or_fileobj=b"# mine\n", path_in_repo="README.md", repo_id=REPO, repo_type="dataset")
    publisher_of(hub, tmp_path).publish(finished(tmp_path, "a"))
    assert hub.files(REPO)["README.md"] == b"# mine\n"


def test_what_others_append_is_read_and_nothing_else(hub: HubServer, tmp_path: Path) -> None:
    first, second = publisher_of(hub, tmp_path, "first"), publisher_of(hub, tmp_path, "second")
    first.publish(finished(tmp_path, "a"))
    before = len(reads(hub))
    first.publish(finished(tmp_path, "b"))
    assert len(reads(hub)) == before, "nobody else has written"
    second.publish(finished(tmp_path, "b", "c"))
    assert index(hub) == ["a", "b", "c"], "what is published is not published again"
    before = len(reads(hub))
    first.publish(finished(tmp_path, "d"))
    assert index(hub) == ["a", "b", "c", "d"]
    assert len(reads(hub)) == before + 1


def test_an_index_that_somebody_has_rewritten_is_read_anew(hub: HubServer, tmp_path: Path) -> None:
    publisher = publisher_of(hub, tmp_path)
    publisher.publish(finished(tmp_path, "a", "b"))
    rows = [{**row, "tags": "by hand"} for row in read_rows(hub.files(REPO)["data/train.jsonl"])]
    rows.insert(0, {"image_id": "older", "image_url": "from the public pipeline"})
    text = write_rows(rows).rstrip(b"\n")  # Nor does it end its last line.
    api_of(hub).create_commit(
        REPO,
        [CommitOperationAdd(path_in_repo="data/train.jsonl", path_or_fileobj=text)],
        commit_message="by hand",
        repo_type="dataset",
    )
    publisher.publish(finished(tmp_path, "b", "c"))
    assert hub.files(REPO)["data/train.jsonl"].startswith(text + b"\n")
    assert index(hub) == ["older", "a", "b", "c"]
    api_of(hub).upload_file(path_or_fileobj=b"", path_in_repo="data/train.jsonl", repo_id=REPO, repo_type="dataset")
    publisher.publish(finished(tmp_path, "d"))
    assert index(hub) == ["d"]


@pytest.mark.parametrize("line", [b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_an_index_that_is_none_is_told_and_left_alone(hub: HubServer, tmp_path: Path, line: bytes) -> None:
    content = b'{"image_id": "x"}\n\n' + line + b"\n"
    api_of(hub).upload_file(path_or_fileobj=content, path_in_repo="data/train.jsonl", repo_id=REPO, repo_type="dataset")
    with pytest.raises(HubError, match=r"data/train\.jsonl has a line that is no JSON object \(line 3: "):
        publisher_of(hub, tmp_path).publish(finished(tmp_path, "a"))
    assert hub.files(REPO)["data/train.jsonl"] == content


def test_an_answer_that_is_lost_publishes_nothing_twice(hub: HubServer, tmp_path: Path) -> None:
    hub.lose_answers = 2
    publisher = publisher_of(hub, tmp_path)
    publisher.publish(finished(tmp_path, "a", "b"))
    publisher.publish(finished(tmp_path, "c"))
    assert index(hub) == ["a", "b", "c"]
    assert len(hub.commits(REPO)) == 3
    assert [path.name for path in (tmp_path / "first").iterdir()] == [".index.jsonl"], "no scratch is left"


def test_large_files_are_sent_once(hub: HubServer, tmp_path: Path) -> None:
    publisher = publisher_of(hub, tmp_path)
    photos = finished(tmp_path, "a", "b")
    for photo in photos:
        publisher.send_ahead(photo)
    assert len(hub.commits(REPO)) == 1
    sent = [path for method, path in hub.seen if method == "PUT"]
    assert len(sent) == 6
    hub.fail = 2
    publisher.publish(photos)
    again = [path for method, path in hub.seen if method == "PUT"][len(sent) :]
    assert not set(again) & set(sent)
    assert index(hub) == ["a", "b"]


def test_without_a_subdir_photographs_lie_at_the_top(hub: HubServer, tmp_path: Path) -> None:
    photo = replace(finished(tmp_path, "a")[0], splats={"spz": tmp_path / "a.spz"})
    publisher_of(hub, tmp_path, subdir="/").publish([photo])
    assert {"a/a.jpg", "a/a.spz"} <= hub.files(REPO).keys()
    (row,) = read_rows(hub.files(REPO)["data/train.jsonl"])
    assert row["ply_url"] == "", "it has none"


def test_halves_of_characters_become_question_marks(hub: HubServer, tmp_path: Path) -> None:
    """As a name that is no UTF-8, or JSON of a service, may have them: no file can."""
    photo = replace(finished(tmp_path, "a")[0], row={"description": "caf\udce9.jpg"})
    publisher_of(hub, tmp_path).publish([photo])
    assert json.loads(hub.files(REPO)["data/train.jsonl"])["description"] == "caf?.jpg"

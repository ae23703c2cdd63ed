"""The index of a published dataset: the copy on this machine, and rows of other writers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from sharp_cog.dataset.hub import HubError
from sharp_cog.dataset.index import OWN_FIELDS, PUBLIC_FIELDS, Index, encode_rows, full_row, read_rows
from tests.dataset.client import REPO, repo_of
from tests.dataset.hub_server import HubServer

PATH = "data/train.jsonl"


def write(hub: HubServer, content: bytes) -> None:
    """Replace the index as another client would."""
    api = HfApi(endpoint=hub.url, token="hf_test")
    api.upload_file(path_or_fileobj=content, path_in_repo=PATH, repo_id=REPO, repo_type="dataset")


def reads(hub: HubServer) -> int:
    return sum(method == "GET" and "/resolve/" in path for method, path in hub.seen)


def test_only_appended_rows_are_read(hub: HubServer, tmp_path: Path) -> None:
    index, repo = Index(PATH, tmp_path / ".index.jsonl"), repo_of(hub)
    index.update(repo.look())
    assert index.ids == set()
    first, second = (encode_rows([full_row({"image_id": name})]) for name in ("a", "b"))
    write(hub, first)
    index.update(repo.look())
    index.update(repo.look())
    assert (index.ids, reads(hub)) == ({"a"}, 1)
    write(hub, first + second)
    index.update(repo.look())
    assert (index.ids, reads(hub)) == ({"a", "b"}, 2)
    assert (tmp_path / ".index.jsonl").read_bytes() == first + second


def test_a_rewritten_index_is_read_again(hub: HubServer, tmp_path: Path) -> None:
    index, repo = Index(PATH, tmp_path / ".index.jsonl"), repo_of(hub)
    write(hub, encode_rows([full_row({"image_id": name}) for name in ("a", "b")]))
    index.update(repo.look())
    text = encode_rows([full_row({"image_id": name}) for name in ("older", "c", "d")]).rstrip(b"\n")
    write(hub, text)
    index.update(repo.look())
    assert index.ids == {"older", "c", "d"}
    draft = index.draft([full_row({"image_id": "e"})])
    assert draft.read_bytes() == text + b"\n" + encode_rows([full_row({"image_id": "e"})])
    index.accept(draft, ["e"])
    assert "e" in index.ids
    write(hub, b"")
    index.update(repo.look())
    assert index.ids == set()


@pytest.mark.parametrize("line", [b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_a_broken_line_is_named(hub: HubServer, tmp_path: Path, line: bytes) -> None:
    write(hub, b'{"image_id": "x"}\n\n' + line + b"\n")
    with pytest.raises(HubError, match=r"data/train\.jsonl has a line that is no JSON object \(line 3: "):
        Index(PATH, tmp_path / ".index.jsonl").update(repo_of(hub).look())


def test_a_row_has_all_fields_as_text() -> None:
    assert full_row({"image_id": "a", "unknown": "x"}) == {
        **dict.fromkeys((*PUBLIC_FIELDS, *OWN_FIELDS), ""),
        "image_id": "a",
    }


def test_lines_end_at_newlines_only() -> None:
    """JSON may contain U+2028 unescaped, at which Python's `splitlines` would split too."""
    rows = [{"user_name": "Ansel \u2028 \u0085 A."}]
    assert read_rows(encode_rows(rows)) == rows


def test_lone_surrogates_become_question_marks() -> None:
    """File names that are not UTF-8 contain them, and so may the JSON of a service."""
    assert json.loads(encode_rows([{"description": "caf\udce9.jpg"}])) == {"description": "caf?.jpg"}

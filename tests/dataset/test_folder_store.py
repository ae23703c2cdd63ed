"""A folder as a store of many clients."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sharp_cog.dataset.folder_store import FolderStore
from sharp_cog.dataset.store import Change, Delete, Put, View
from sharp_cog.errors import OutputError


def test_a_file_that_another_client_creates_meanwhile_repeats_the_decision(tmp_path: Path) -> None:
    """This happens on network file systems without reliable locks."""
    store = FolderStore(tmp_path)
    looks = 0

    def decide(view: View) -> tuple[Change, bytes | None]:
        nonlocal looks
        looks += 1
        found = view.read("locks/a")
        if looks == 1:
            (tmp_path / "locks").mkdir()
            (tmp_path / "locks" / "a").write_bytes(b"theirs")
        operations = [] if found else [Put(path="locks/a", content=b"ours")]
        return Change(operations=operations, message=""), found

    assert store.change(decide) == b"theirs"
    assert looks == 2
    assert os.listdir(tmp_path / "locks") == ["a"], "no draft is left"


def test_no_change_of_many_threads_is_lost(tmp_path: Path) -> None:
    def add(_: int) -> None:
        def decide(view: View) -> tuple[Change, None]:
            number = int(view.read("count") or b"0")
            return Change(operations=[Put(path="count", content=b"%d" % (number + 1))], message=""), None

        FolderStore(tmp_path).change(decide)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(add, range(40)))
    assert (tmp_path / "count").read_bytes() == b"40"


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"shared cannot be created: .*CLAIMS_DIR"):
        FolderStore(tmp_path / "file" / "shared")


def test_a_missing_file_can_be_deleted(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.change(lambda view: (Change(operations=[Put(path="a/b", content=b"1")], message=""), None))
    store.change(lambda view: (Change(operations=[Delete(path="a/b"), Delete(path="a/c")], message=""), None))
    assert os.listdir(tmp_path / "a") == []

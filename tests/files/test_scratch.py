"""Temporary folders; `tests/faults/test_leftovers.py` has those of killed processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from sharp_cog.errors import OutputError
from sharp_cog.files.scratch import PREFIX, ScratchFolder


def test_the_folder_and_its_content_are_removed_at_the_end_of_the_block(tmp_path: Path) -> None:
    with ScratchFolder(tmp_path) as folder:
        assert folder.name.startswith(PREFIX)
        (folder / "splat.ply").write_bytes(b"content")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_removed_with_its_owner(tmp_path: Path) -> None:
    scratch = ScratchFolder(tmp_path)
    assert scratch.path.is_dir()
    del scratch
    assert list(tmp_path.iterdir()) == []


def test_a_folder_can_be_removed_twice(tmp_path: Path) -> None:
    scratch = ScratchFolder(tmp_path)
    scratch.remove()
    scratch.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_created_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"):
        ScratchFolder(tmp_path / "missing")

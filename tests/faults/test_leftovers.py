"""Temporary files and folders of killed processes, which the next process removes; those in use stay."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sharp_cog.files.atomic import open_atomically, sweep
from sharp_cog.files.scratch import ScratchFolder
from tests.faults.disks import tree

WRITES = """
import sys, time
from pathlib import Path
from sharp_cog.files.atomic import open_atomically
with open_atomically(Path(sys.argv[1]) / "splat.ply") as file:
    file.write(bytes(100_000))
    file.flush()
    print("ready", flush=True)
    time.sleep(600)
"""
HAS_A_FOLDER = """
import sys, time
from pathlib import Path
from sharp_cog.files.scratch import ScratchFolder
with ScratchFolder(Path(sys.argv[1])) as folder:
    (folder / "splat.ply").write_bytes(bytes(100_000))
    print("ready", flush=True)
    time.sleep(600)
"""


@contextmanager
def running(program: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a program, wait until it prints that it is ready, and kill it at the end of the block."""
    process = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_temporary_file_of_a_killed_process_is_removed_and_that_of_a_running_one_stays(tmp_path: Path) -> None:
    (tmp_path / "splat.ply").write_bytes(b"old")
    with running(WRITES, tmp_path):
        (left,) = tmp_path.glob(".splat.ply.*.part")
        sweep(tmp_path)
        assert left.stat().st_size == 100_000
    assert left.exists(), "a killed process cannot clean up"
    sweep(tmp_path)
    assert tree(tmp_path).keys() == {"splat.ply"}
    assert (tmp_path / "splat.ply").read_bytes() == b"old"


def test_files_with_other_names_stay(tmp_path: Path) -> None:
    names = [
        ".model.pt.part",
        ".model.pt.part.json",
        "a.0123abcd.part",
        ".a.0123abcd.draft",
        ".a.xyzxyzxy.part",
        "a.ply",
    ]
    for name in names:
        (tmp_path / name).write_text("kept")
    sweep(tmp_path)
    sweep(tmp_path / "missing")
    assert sorted(tree(tmp_path)) == sorted(names)


def test_a_file_that_this_process_is_writing_stays(tmp_path: Path) -> None:
    with open_atomically(tmp_path / "splat.ply") as file:
        file.write(b"whole")
        sweep(tmp_path)
    assert (tmp_path / "splat.ply").read_bytes() == b"whole"


def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_running_one_stays(tmp_path: Path) -> None:
    with running(HAS_A_FOLDER, tmp_path):
        (left,) = tmp_path.iterdir()
        with ScratchFolder(tmp_path) as mine:
            assert (left / "splat.ply").exists()
            assert mine != left
        assert list(tmp_path.iterdir()) == [left]
    assert left.exists(), "a killed process cannot clean up"
    with ScratchFolder(tmp_path) as mine:
        assert list(tmp_path.iterdir()) == [mine]
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("name", ["sharp_cog", "sharp_cog_photos", "sharp_cog-scratch", "sharp-cog"])
def test_folders_with_similar_names_stay(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    ScratchFolder(tmp_path).remove()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_link_with_the_name_of_a_scratch_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("kept")
    (tmp_path / "temporary").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "temporary" / "sharp_cog-scratch-abcdefgh")
    (tmp_path / "temporary" / "sharp_cog-scratch-file").write_text("kept")
    ScratchFolder(tmp_path / "temporary").remove()
    assert (tmp_path / "elsewhere" / "precious").read_text() == "kept"
    assert (tmp_path / "temporary" / "sharp_cog-scratch-file").read_text() == "kept"

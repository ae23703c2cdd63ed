"""Files that appear whole or not at all."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from sharp_cog.errors import OutputError
from sharp_cog.files import atomic
from sharp_cog.files.atomic import open_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "a.ply"
    with open_atomically(target) as file:
        file.write(b"new")
        file.flush()
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["a.ply"]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.ply"
    target.write_bytes(b"old")
    with target.open("rb") as reader:
        with open_atomically(target) as file:
            file.write(b"new and longer")
            file.flush()
            assert target.read_bytes() == b"old"
        assert reader.read() == b"old", "a reader keeps the file that it opened"
    assert target.read_bytes() == b"new and longer"


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt, SystemExit])
def test_after_an_exception_only_the_old_file_exists(tmp_path: Path, exception: type[BaseException]) -> None:
    target = tmp_path / "a.ply"
    target.write_bytes(b"old")

    def write_half() -> None:
        with open_atomically(target) as file:
            file.write(b"half")
            raise exception

    with pytest.raises(exception):
        write_half()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.ply"]


def test_a_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"), open_atomically(tmp_path / "no" / "a.ply"):
        pytest.fail("the block ran")


def test_a_folder_in_the_place_of_the_file_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "a.ply").mkdir()
    with pytest.raises(OutputError, match="directory"), open_atomically(tmp_path / "a.ply") as file:
        file.write(b"new")
    assert names(tmp_path) == ["a.ply"]


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    target = tmp_path / "a.ply"
    with open_atomically(target) as first, open_atomically(target) as second:
        first.write(b"first")
        second.write(b"second")
    assert target.read_bytes() in (b"first", b"second")
    assert names(tmp_path) == ["a.ply"]


def test_the_old_file_stays_if_writing_fails(tmp_path: Path) -> None:
    target = tmp_path / "a.ply"
    target.write_bytes(b"old")
    # A limit on the size of files fails a write in the middle, as a full disk does.
    program = """
import resource, signal, sys
from pathlib import Path
from sharp_cog.files.atomic import open_atomically
from sharp_cog.errors import OutputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with open_atomically(Path(sys.argv[1])) as file:
        file.write(bytes(100_000))
except OutputError as error:
    print(error.code)
"""
    result = subprocess.run([sys.executable, "-c", program, str(target)], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "cannot_write"
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.ply"]


def test_ctrl_c_at_any_line_leaves_nothing(tmp_path: Path) -> None:
    """Before the block begins, nothing but the context manager itself can remove its temporary file."""
    lines = itertools.count()

    def trace(number: int | None) -> Callable[[FrameType, str, Any], Any]:
        def trace_line(frame: FrameType, event: str, argument: object) -> object:
            if frame.f_code.co_filename != atomic.__file__:
                return None
            if event == "line" and next(lines) == number:
                raise KeyboardInterrupt
            return trace_line

        return trace_line

    def begin(number: int | None) -> None:
        nonlocal lines
        lines, before = itertools.count(), sys.gettrace()
        sys.settrace(trace(number))
        try:
            with open_atomically(tmp_path / "a.ply"):
                sys.settrace(before)
        finally:
            sys.settrace(before)

    begin(None)
    num_lines = next(lines)
    assert num_lines > 10
    (tmp_path / "a.ply").unlink()
    for number in range(num_lines):
        with pytest.raises(KeyboardInterrupt):
            begin(number)
        assert list(tmp_path.iterdir()) == [], number

"""A disk that is full during a download: the error has both sizes, and the next download resumes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sharp_cog.errors import DownloadError
from tests.faults.disks import KINDS, SmallDisk, disk, may_mount, unchanged
from tests.runtime.test_download import CONTENT, Server, assert_whole, fetch, files, server

__all__ = ["server"]

PARTIAL = {".model.pt.part", ".model.pt.part.json"}
needs_file_system = pytest.mark.skipif(not may_mount(), reason="this process may not mount a file system")


@contextmanager
def filled_meanwhile(server: Server, full: SmallDisk, after_bytes: int) -> Iterator[None]:
    """Fill the disk, as another program would, once the server has sent `after_bytes`."""

    def fill() -> None:
        while server.bytes_sent < after_bytes:
            time.sleep(0.001)
        full.fill()

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield
    finally:
        thread.join(30)
        full.make_room()


def check_break(kind: str, server: Server, folder: Path, position: int) -> None:
    """Download whole a file that does not fit after `position` bytes, and again with enough room."""
    server.ranges = False
    with disk(kind, folder) as full:
        target = full.path / "model.pt"
        (full.path / ".model.pt.lock").touch()  # A lock file is never removed, so it must exist before.
        with unchanged(full.path), full.full_after(position), pytest.raises(DownloadError, match="make room"):
            fetch(server, target)
        fetch(server, target)
        assert_whole(target)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", [0, len(CONTENT) // 2])
def test_a_download_without_ranges_that_finds_no_room_leaves_nothing(
    kind: str, position: int, server: Server, tmp_path: Path
) -> None:
    check_break(kind, server, tmp_path, position)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percent", range(100))
def test_a_download_without_ranges_may_find_no_room_at_any_byte(
    kind: str, percent: int, server: Server, tmp_path: Path
) -> None:
    check_break(kind, server, tmp_path, len(CONTENT) * percent // 100)


@needs_file_system
def test_too_little_room_is_reported_before_the_download_with_both_sizes(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT * 10
    with disk("file system", tmp_path) as full, full.full_after(10_000_000):
        with pytest.raises(
            DownloadError, match=r"has 0\.01 GB free and model\.pt needs 0\.03 GB: make room, or choose"
        ):
            fetch(server, full.path / "model.pt", num_bytes=None)
        assert files(full.path) <= {".ballast"}
    assert server.bytes_sent <= 1


@needs_file_system
@pytest.mark.parametrize("after_bytes", [300_000, pytest.param(1_700_000, marks=pytest.mark.slow)])
def test_a_disk_that_fills_up_meanwhile_ends_the_download_and_the_next_one_resumes(
    after_bytes: int, server: Server, tmp_path: Path
) -> None:
    with disk("file system", tmp_path) as full:
        assert isinstance(full, SmallDisk)
        server.pause_s = 0.2
        target = full.path / "model.pt"
        with (
            filled_meanwhile(server, full, after_bytes),
            pytest.raises(DownloadError, match=r"No space left on device: choose another folder .* or make room"),
        ):
            fetch(server, target)
        assert files(full.path) <= PARTIAL, "finished pieces are kept for the next download"
        server.pause_s, sent = 0.0, server.bytes_sent
        fetch(server, target)
        assert_whole(target)
        assert server.bytes_sent - sent <= len(CONTENT) + 1

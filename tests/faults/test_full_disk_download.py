"""A disk that is full while the checkpoint is fetched or converted: told with figures, and gone on from afterwards."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sharp_cog import Settings
from sharp_cog.errors import DownloadError
from sharp_cog.runtime import weights
from tests.faults.disks import KINDS, SmallDisk, disk, may_mount, unchanged
from tests.parity import state
from tests.runtime.test_download import CONTENT, Server, assert_whole, fetch, files, server

__all__ = ["server"]

PARTIAL = {".model.pt.part", ".model.pt.part.json"}
needs_file_system = pytest.mark.skipif(not may_mount(), reason="this process may not mount a file system")


@contextmanager
def filled_by_others(server: Server, full: SmallDisk, after_bytes: int) -> Iterator[None]:
    """Others take what is left of the disk once so many bytes are on their way."""

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
    """A file that is fetched in one, for which there is so much room, and then all."""
    server.ranges = False
    with disk(kind, folder) as full:
        target = full.path / "model.pt"
        (full.path / ".model.pt.lock").touch()  # Of another process, which is never removed.
        with unchanged(full.path), full.full_after(position), pytest.raises(DownloadError, match="make room"):
            fetch(server, target)
        fetch(server, target)
        assert_whole(target)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", [0, len(CONTENT) // 2])
def test_a_file_that_is_fetched_in_one_leaves_nothing_where_there_is_no_room(
    kind: str, position: int, server: Server, tmp_path: Path
) -> None:
    check_break(kind, server, tmp_path, position)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percent", range(100))
def test_a_file_that_is_fetched_in_one_may_break_off_anywhere(
    kind: str, percent: int, server: Server, tmp_path: Path
) -> None:
    check_break(kind, server, tmp_path, len(CONTENT) * percent // 100)


@needs_file_system
def test_too_little_room_is_told_before_the_download_with_what_is_free_and_needed(
    server: Server, tmp_path: Path
) -> None:
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
def test_a_disk_that_others_fill_is_told_and_the_download_goes_on_when_there_is_room(
    after_bytes: int, server: Server, tmp_path: Path
) -> None:
    with disk("file system", tmp_path) as full:
        assert isinstance(full, SmallDisk)
        server.pause_s = 0.2
        target = full.path / "model.pt"
        with (
            filled_by_others(server, full, after_bytes),
            pytest.raises(DownloadError, match=r"No space left on device: choose another folder .* or make room"),
        ):
            fetch(server, target)
        assert files(full.path) <= PARTIAL, "what is there is kept for the next try"
        server.pause_s, sent = 0.0, server.bytes_sent
        fetch(server, target)
        assert_whole(target)
        assert server.bytes_sent - sent <= len(CONTENT) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_copy_that_has_no_room_costs_the_copy_alone(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with disk(kind, tmp_path) as full:
        path = full.path / "sharp.pt"
        torch.save(state("tiny"), path)
        settings = Settings(checkpoint=path, checkpoint_sha256=None, device="cpu", cache_weights=True)
        for room in (0, 2_000_000):
            caplog.clear()
            with caplog.at_level(logging.WARNING), unchanged(full.path), full.full_after(room):
                assert weights.find(settings, torch.bfloat16).path == path
            assert "the converted weights are not kept: cannot write" in caplog.text
        found = weights.find(settings, torch.bfloat16)
        assert found.is_folded
        assert found.open().state.keys()
        assert {file.name for file in full.path.iterdir()} == {"sharp.pt", "sharp.bfloat16.safetensors"}

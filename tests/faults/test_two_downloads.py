"""Two processes that download the same checkpoint: if one is killed, the other one gets it."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.runtime.test_download import CONTENT, QUICK, Server, assert_whole, finished, server, start

__all__ = ["server"]


@pytest.mark.parametrize("killed", ["downloading", "waiting"])
def test_if_one_of_two_processes_is_killed_the_other_gets_the_file(killed: str, server: Server, tmp_path: Path) -> None:
    server.pause_s = 0.05
    target = tmp_path / "model.pt"
    downloading = start(server, target)
    deadline = time.monotonic() + 60
    while not finished(tmp_path):
        assert time.monotonic() < deadline, "no piece was finished"
        time.sleep(0.01)
    waiting = start(server, target)
    other = {"downloading": waiting, "waiting": downloading}[killed]
    process = {"downloading": downloading, "waiting": waiting}[killed]
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert other.wait(60) == 0
    assert_whole(target)
    assert server.bytes_sent < len(CONTENT) + 5 * QUICK.piece_bytes, "finished pieces were not fetched again"

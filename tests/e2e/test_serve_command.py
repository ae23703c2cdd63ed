"""`sharp-cog serve --http` as a person starts and stops it: a real process, real signals."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.e2e.http_server import HttpServer, started_http_server

ROOT = Path(__file__).parents[2]
ROOM, DEPTH = ((ROOT / "examples" / name).read_bytes() for name in ("room.jpg", "room.depth.png"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_stopped_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with started_http_server(tmp_path, "--model", "lift", "--device", "cpu") as server:
        server.wait_until_ready()
        answer = requests.post(
            f"{server.url}/predict/splat", files={"file": ROOM, "depth": DEPTH}, data={"max_gaussians": 100}, timeout=60
        )
        assert len(answer.content) == 3200
        server.process.send_signal(number)
        log = log_of_the_end(server)
    assert server.process.returncode == {signal.SIGINT: 130, signal.SIGTERM: -signal.SIGTERM}[number], log
    assert f"open {server.url} in a browser" in log
    assert "lift on cpu: ready after" in log
    assert "/predict/splat: ok after" in log
    assert "Traceback" not in log
    assert not list(server.temporary.iterdir())


def log_of_the_end(server: HttpServer) -> str:
    server.process.wait(timeout=60)
    return server.log()


def test_a_bad_setting_is_told_before_anything_is_served(tmp_path: Path) -> None:
    with started_http_server(tmp_path, SHARP_QUEUE_SIZE="many") as server:
        log = log_of_the_end(server)
    assert server.process.returncode == 1
    assert log.strip() == "error: SHARP_QUEUE_SIZE is 'many': give a whole number [invalid_setting]"


def test_a_missing_checkpoint_is_told_in_the_log_and_by_health(tmp_path: Path) -> None:
    with started_http_server(tmp_path, "--checkpoint", str(tmp_path / "none.pt")) as server:
        with pytest.raises(RuntimeError, match="the model cannot be loaded"):
            server.wait_until_ready()
        assert requests.get(f"{server.url}/health", timeout=5).json()["code"] == "checkpoint_missing"
        server.process.terminate()
        log = log_of_the_end(server)
    assert f"{tmp_path / 'none.pt'}" in log
    assert "Traceback" not in log


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "sharp_cog", "serve", "--http", "--model", "lift", "--port", str(port)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert f"port {port}: Address already in use: choose another --host or --port [invalid_setting]" in result.stderr

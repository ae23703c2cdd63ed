"""`sharp-cog serve --http` as a person starts and stops it: a real process, real signals."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

ROOT = Path(__file__).parents[2]
ROOM, DEPTH = ((ROOT / "examples" / name).read_bytes() for name in ("room.jpg", "room.depth.png"))


@contextmanager
def served(folder: Path, *flags: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process of the command, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "sharp_cog", "serve", "--http", "--port", str(port), *flags],
        env={**os.environ, "TMPDIR": str(folder), **environment},
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores Ctrl-C, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


def wait_until_ready(process: subprocess.Popen[str], url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        try:
            if requests.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_stopped_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with served(tmp_path, "--model", "lift", "--device", "cpu") as (process, url):
        wait_until_ready(process, url)
        answer = requests.post(
            f"{url}/predict/splat", files={"file": ROOM, "depth": DEPTH}, data={"max_gaussians": 100}, timeout=60
        )
        assert len(answer.content) == 3200
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: -signal.SIGTERM}[number], errors
    assert f"open {url} in a browser" in errors
    assert "lift on cpu: ready after" in errors
    assert "/predict/splat: ok after" in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("sharp_cog-scratch-*"))


def test_a_bad_setting_is_told_before_anything_is_served(tmp_path: Path) -> None:
    with served(tmp_path, SHARP_QUEUE_SIZE="many") as (process, _):
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.strip() == "error: SHARP_QUEUE_SIZE is 'many': give a whole number [invalid_setting]"


def test_a_missing_checkpoint_is_told_in_the_log_and_by_health(tmp_path: Path) -> None:
    with served(tmp_path, "--checkpoint", str(tmp_path / "none.pt")) as (process, url):
        deadline, health = time.monotonic() + 60, {"status": "loading"}
        while health["status"] == "loading" and time.monotonic() < deadline:
            try:
                health = requests.get(f"{url}/health", timeout=5).json()
            except requests.ConnectionError:
                time.sleep(0.1)
        assert health["status"] == "failed"
        assert health["code"] == "checkpoint_missing"
        process.terminate()
        _, errors = process.communicate(timeout=30)
    assert f"{tmp_path / 'none.pt'}" in errors
    assert "Traceback" not in errors


def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "sharp_cog", "serve", "--http", "--model", "lift", "--port", str(port)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert f"port {port}: Address already in use: choose another --host or --port [invalid_setting]" in result.stderr

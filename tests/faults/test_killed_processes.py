"""Processes that are ended during their work, and the next ones, which work as if nothing had happened.

SIGTERM leaves nothing. After SIGKILL, the next start or command removes the leftovers. For dataset runs and Ray:
tests/e2e/test_dataset_cli.py and tests/dataset/test_ray_engine.py.
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.e2e.cog_server import data_uri, started_cog_server
from tests.faults.disks import tree
from tests.runtime.test_download import QUICK, SHA256, Server, server
from tests.splats import CAMERA, random_gaussians

__all__ = ["server"]

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ROOM, DEPTH = (ROOT / "examples" / name for name in ("room.jpg", "room.depth.png"))
DEADLINE_S = 120.0


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert process is None or process.poll() is None, "the process ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SHARP_")}
    return {**kept, "SHARP_DEVICE": "cpu", **more}


def started(folder: Path, *arguments: str, **more: str) -> subprocess.Popen[bytes]:
    with (folder.parent / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=folder,
            env=environment(**more),
            stdout=log,
            stderr=log,
            preexec_fn=obeys_ctrl_c,
        )


def obeys_ctrl_c() -> None:
    """Handle SIGINT, which a shell makes background jobs, such as these tests, and their children ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def temporary_files(folder: Path) -> list[str]:
    """Return the names of temporary files in a folder while other processes use it."""
    return [name for _, _, names in os.walk(folder) for name in names if name.endswith(".part")]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Return a folder with an image, its depth map, and a splat that takes a while to convert."""
    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copy(ROOM, folder / "room.jpg")
    shutil.copy(DEPTH, folder / "depth.png")
    from sharp_cog import PredictOptions, formats

    formats.write(folder / "splat.ply", random_gaussians(400_000), CAMERA, PredictOptions())
    return folder


COMMANDS = {
    "predict": ("predict", "room.jpg", "-o", "room.spz", "--model", "lift", "--depth", "depth.png"),
    "convert": ("convert", "splat.ply", "splat.sog"),
    "render": ("render", "splat.ply", "-o", "splat.webp", "--duration", "1", "--fps", "8", "--width", "1024"),
}
RESULTS = {"predict": "room.spz", "convert": "splat.sog", "render": "splat.webp"}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_is_ended_while_it_writes_does_not_disturb_the_next(
    name: str, how: signal.Signals, work: Path
) -> None:
    before = tree(work)
    process = started(work, "sharp_cog", *COMMANDS[name])
    wait_until(lambda: temporary_files(work), process)
    process.send_signal(how)
    assert process.wait(60) == (130 if how == signal.SIGINT else -how)
    if how != signal.SIGKILL:
        assert tree(work) == before
    assert not (work / RESULTS[name]).exists()
    assert started(work, "sharp_cog", *COMMANDS[name]).wait(DEADLINE_S) == 0
    after = tree(work)
    assert after.pop(RESULTS[name])
    assert after == before


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_download_that_is_ended_resumes(how: signal.Signals, server: Server, tmp_path: Path) -> None:
    server.pause_s = 0.05
    (tmp_path / "cache").mkdir()
    more = {"SHARP_CHECKPOINT_URL": server.url, "SHARP_CHECKPOINT_SHA256": SHA256, "no_proxy": "127.0.0.1"}
    command = ("sharp_cog", "download", "--cache-dir", str(tmp_path / "cache"))
    process = started(tmp_path / "cache", *command, **more)
    wait_until(lambda: server.bytes_sent > QUICK.piece_bytes, process)
    process.send_signal(how)
    assert process.wait(60) == (130 if how == signal.SIGINT else -how)
    assert not (tmp_path / "cache" / "model.pt").exists()
    server.pause_s = 0.0
    assert started(tmp_path / "cache", *command, **more).wait(DEADLINE_S) == 0
    assert tree(tmp_path / "cache").keys() == {"model.pt", ".model.pt.lock"}
    assert tree(tmp_path / "cache")["model.pt"] == SHA256


@contextmanager
def serving(folder: Path, *arguments: str, **more: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start a service in another process, with a folder for its temporary files."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = started(folder, *(text.format(port=port) for text in arguments), TMPDIR=str(folder), **more)
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def is_up(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).status_code == 200
    except requests.ConnectionError:
        return False


def asked(ask: Callable[[], requests.Response]) -> threading.Thread:
    """Send a request in a thread, whether or not it gets an answer."""

    def listen() -> None:
        with suppress(requests.RequestException):
            ask()

    thread = threading.Thread(target=listen)
    thread.start()
    return thread


def test_a_killed_http_service_restarts_without_leftovers(tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    command = ("sharp_cog", "serve", "--model", "lift", "--port", "{port}")

    def ask(url: str) -> requests.Response:
        files = {"file": ROOM.read_bytes(), "depth": DEPTH.read_bytes()}
        return requests.post(f"{url}/predict/spz", files=files, timeout=DEADLINE_S)

    with serving(folder, *command) as (process, url):
        wait_until(lambda: is_up(f"{url}/health"), process)
        thread = asked(lambda: ask(url))
        wait_until(lambda: temporary_files(folder), process)
        process.kill()
        process.wait()
        thread.join(30)
    (left,) = folder.glob("sharp_cog-scratch-*")
    with serving(folder, *command) as (process, url):
        wait_until(lambda: is_up(f"{url}/health"), process)
        assert not left.exists(), "removed at the start"
        assert ask(url).content.startswith(b"\x1f\x8b")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM
    assert tree(folder) == {}


def test_a_killed_runpod_worker_restarts_without_leftovers(tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    command = ("sharp_cog.serving.runpod", "--rp_serve_api", "--rp_api_port", "{port}")
    ready = folder / "sharp_cog.ready"

    def ask(url: str) -> requests.Response:
        given = {"image": ROOM.read_bytes(), "depth": DEPTH.read_bytes()}
        values = {name: base64.b64encode(content).decode() for name, content in given.items()}
        body = {"input": {**values, "max_gaussians": 400_000, "format": "sog"}}
        return requests.post(f"{url}/runsync", json=body, timeout=DEADLINE_S)

    with serving(folder, *command, SHARP_MODEL="lift", PYTHONPATH=str(ROOT)) as (process, url):
        wait_until(lambda: ready.exists() and is_up(f"{url}/docs"), process)
        thread = asked(lambda: ask(url))
        wait_until(lambda: temporary_files(folder), process)
        process.kill()
        process.wait()
        thread.join(30)
    assert ready.exists(), "it still says that the killed worker is ready"
    (left,) = folder.glob("sharp_cog-scratch-*")
    with serving(folder, *command, SHARP_MODEL="lift", PYTHONPATH=str(ROOT)) as (process, url):
        wait_until(lambda: not ready.exists(), process)
        wait_until(lambda: ready.exists() and is_up(f"{url}/docs"), process)
        assert ask(url).json()["output"]["num_gaussians"] == 400_000
        assert not left.exists(), "removed with the first request"
    assert tree(folder).keys() == {"sharp_cog.ready"}


def test_a_killed_cog_worker_ends_its_server_and_the_next_one_has_no_leftovers(tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    inputs = {
        "image": data_uri(ROOM.read_bytes(), "image/jpeg"),
        "depth": data_uri(DEPTH.read_bytes(), "image/png"),
        "output_format": "spz",
    }
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with started_cog_server(tmp_path / "one", SHARP_MODEL="lift", TMPDIR=str(folder)) as cog:
        cog.wait_until_ready()
        thread = asked(lambda: cog.post(inputs))
        wait_until(lambda: temporary_files(folder))
        (worker,) = [
            process
            for process in psutil.Process(cog.process.pid).children(recursive=True)
            if any(Path(file).parent.name == "cog" for file in _open_folders(process, folder))
        ]
        worker.kill()
        thread.join(60)
        assert not thread.is_alive(), "the client gets an answer"
        wait_until(lambda: cog.process.poll() is not None or cog.health() in ("DEFUNCT", "UNHEALTHY"))
    assert not list(folder.rglob("*.spz")), "no partial file has the final name"
    with started_cog_server(tmp_path / "two", SHARP_MODEL="lift", TMPDIR=str(folder)) as cog:
        answer = cog.predict(inputs)
        assert answer["status"] == "succeeded", answer
        assert len(list(folder.glob("sharp_cog-scratch-*"))) == 1, (
            "the folder of the killed worker was removed at the start"
        )
        assert temporary_files(folder) == []


def _open_folders(process: psutil.Process, folder: Path) -> list[str]:
    """Return the paths in a folder that a process has open."""
    descriptors = Path(f"/proc/{process.pid}/fd")
    with suppress(OSError):
        return [target for file in descriptors.iterdir() if (target := os.readlink(file)).startswith(str(folder))]
    return []

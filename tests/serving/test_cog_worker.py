"""The checks inside Cog's worker, in coglet's own process tree, as in the image."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import coglet
import pytest
import requests

from sharp_cog.serving import cog_worker
from sharp_cog.serving.cog_worker import GUARDED, PREDICTIONS, TESTED, Watchdog, check_worker
from tests.e2e.processes import free_port
from tests.serving.guarded_cog import IMAGE, ROOT, SCHEMA, TOY

LIMIT_S = 1.5


@contextlib.contextmanager
def bare_coglet(folder: Path) -> Iterator[str]:
    """Start coglet as the image does, and yield its address."""
    (folder / ".cog").mkdir(parents=True)
    (folder / ".cog" / "openapi_schema.json").write_text(json.dumps(SCHEMA), encoding="ascii")
    (folder / "predict.py").symlink_to(TOY)
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SHARP_", "COG_"))}
    environment |= {"PYTHONPATH": str(ROOT), "PORT": str(port), "COG_PREDICT_TYPE_STUB": "predict.py:Predictor"}
    environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"}
    environment |= {"TMPDIR": str(folder), "SHARP_REQUEST_SECONDS": str(LIMIT_S)}
    command = [sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, "READY")
        yield url
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


def wait_for(url: str, status: str) -> None:
    deadline, found = time.monotonic() + 60, None
    while found != status:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
        with contextlib.suppress(requests.ConnectionError):
            found = requests.get(f"{url}/health-check", timeout=10).json()["status"]


def predict(url: str, prediction_id: str, seconds: float = 0.0) -> dict[str, object]:
    inputs = {"input": {"image": IMAGE, "seconds": seconds}}
    body: dict[str, object] = requests.put(f"{url}/predictions/{prediction_id}", json=inputs, timeout=30).json()
    return body


def test_without_the_guard_a_lost_slot_ends_the_worker_and_a_long_prediction_does_not(tmp_path: Path) -> None:
    with bare_coglet(tmp_path / "server") as url:
        assert predict(url, f"long-{uuid.uuid4().hex}", seconds=3 * LIMIT_S)["status"] == "succeeded"
        wait_for(url, "READY")
        assert predict(url, "a" * 300)["error"] == "Failed to create output dir: File name too long (os error 36)"
        wait_for(url, "UNHEALTHY")
        log = (tmp_path / "server" / "log").read_text(encoding="utf-8")
        assert f"busy for {LIMIT_S} s without a prediction: ending the worker" in log


def test_the_warning_names_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert coglet.__version__ == TESTED
    monkeypatch.setenv(GUARDED, "1")
    assert check_worker() is None
    monkeypatch.delenv(GUARDED)
    assert "no guard here: only trusted programs may reach its port" in (check_worker() or "")
    monkeypatch.setattr(cog_worker, "TESTED", "0.0.1")
    assert f"coglet is {coglet.__version__}, but its faults were worked around in 0.0.1" in (check_worker() or "")


def test_a_watchdog_without_a_server_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", str(free_port()))
    killed: list[bool] = []
    Watchdog(0.02, kill=lambda: killed.append(True)).start()
    time.sleep(0.2)
    assert killed == []
    assert PREDICTIONS.is_dir()

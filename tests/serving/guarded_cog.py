"""Cog's real server behind the guard, as a child process with a predictor that has no model and so starts at once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from tests.e2e.processes import free_port

ROOT = Path(__file__).resolve().parents[2]
TOY = Path(__file__).with_name("toy_predictor.py")
READY_SECONDS = 60.0
SCHEMA = {
    "openapi": "3.0.2",
    "info": {"title": "Cog", "version": "0.1.0"},
    "paths": {},
    "components": {
        "schemas": {
            "Input": {
                "type": "object",
                "required": ["image"],
                "properties": {
                    "image": {"type": "string", "format": "uri"},
                    "times": {"type": "integer", "default": 1},
                    "seconds": {"type": "number", "default": 0.0},
                },
            },
            "Output": {"type": "string", "format": "uri"},
        }
    },
}
"""What `cog build` would write for the predictor: Cog's server checks inputs by it."""
IMAGE = "data:;base64,aGVsbG8="
"""The file `hello`."""


@dataclass(kw_only=True)
class GuardedCog:
    """A running server.

    Attributes:
        url: Address of the guard.
        process: The guard; coglet is a child of it.
        folder: Its folder, with its log and all temporary files.
    """

    url: str
    process: subprocess.Popen[bytes]
    folder: Path

    def predict(self, inputs: dict[str, Any] | None = None, **fields: object) -> requests.Response:
        return requests.post(
            f"{self.url}/predictions", json={"input": {"image": IMAGE, **(inputs or {})}, **fields}, timeout=60
        )

    def put(self, prediction_id: str, inputs: dict[str, Any] | None = None) -> requests.Response:
        """Send a prediction to an address that `requests` must not normalise."""
        request = requests.Request("PUT", self.url, json={"input": {"image": IMAGE, **(inputs or {})}}).prepare()
        request.url = f"{self.url}/predictions/{prediction_id}"
        with requests.Session() as session:
            return session.send(request, timeout=60)

    def health(self) -> dict[str, Any]:
        body: dict[str, Any] = requests.get(f"{self.url}/health-check", timeout=10).json()
        return body

    def wait_for(self, status: str, seconds: float = READY_SECONDS) -> None:
        deadline, found = time.monotonic() + seconds, None
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log()
            with contextlib.suppress(requests.ConnectionError):
                found = self.health()["status"]
            if found == status:
                return
            time.sleep(0.05)
        raise AssertionError(f"{found} in place of {status}:\n{self.log()}")

    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def files(self) -> list[str]:
        """Return the sorted names of all temporary files."""
        return sorted(path.name for path in (self.folder / "tmp").rglob("*") if path.is_file())


@contextlib.contextmanager
def guarded_cog(folder: Path, *arguments: str, is_ready: bool = True, **environment: str) -> Iterator[GuardedCog]:
    """Start a server, and kill it at the end.

    Args:
        folder: An empty folder for the server.
        arguments: Arguments of the server.
        is_ready: Wait until it takes predictions.
        environment: More environment variables.
    """
    for name in (".cog", "tmp"):
        (folder / name).mkdir(parents=True)
    (folder / ".cog" / "openapi_schema.json").write_text(json.dumps(SCHEMA), encoding="ascii")
    (folder / "predict.py").symlink_to(TOY)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SHARP_", "COG_"))}
    inherited["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{inherited.get('PATH', '')}"
    inherited |= {"TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(ROOT)}
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "sharp_cog.serving.cog_server", "--port", str(port), *arguments],
            cwd=folder,
            env={**inherited, "COG_PREDICT_TYPE_STUB": "predict.py:Predictor", **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = GuardedCog(url=f"http://127.0.0.1:{port}", process=process, folder=folder)
    try:
        if is_ready:
            server.wait_for("READY")
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)

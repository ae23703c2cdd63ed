"""Cog's real server as a child process, and a web server that it talks to."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests

from tests.e2e.processes import anonymous_bytes, free_port

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 180.0
KEY = "a-key-of-the-tests"
"""Key of the servers, with which callers may name webhooks."""
ANSWER_SECONDS = 120.0


@dataclass(kw_only=True)
class CogServer:
    """A server that `scripts/serve` has started.

    Attributes:
        url: Address of the server.
        process: The server; its worker is a child of it.
        log_path: File with the output of both.
        temporary: Folder of all their temporary files: inputs and outputs.
    """

    url: str
    process: subprocess.Popen[bytes]
    log_path: Path
    temporary: Path

    def predict(self, inputs: Mapping[str, object]) -> dict[str, Any]:
        """Run one prediction to its end and return the answer."""
        self.wait_until_ready()  # An answer can arrive before the server takes the next prediction.
        response = self.post(inputs)
        assert response.status_code == 200, response.text[:2000]
        answer: dict[str, Any] = response.json()
        return answer

    def post(self, inputs: Mapping[str, object], *, respond_async: bool = False, **fields: object) -> requests.Response:
        headers = {"Prefer": "respond-async"} if respond_async else {}
        return self.send("POST", "/predictions", json={"input": inputs, **fields}, headers=headers)

    def send(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **rest: Any
    ) -> requests.Response:
        """Send any request, with the key."""
        with_key = {"X-API-Key": KEY, **(headers or {})}
        return requests.request(method, self.url + path, headers=with_key, timeout=ANSWER_SECONDS, **rest)

    def health(self) -> str:
        status: str = requests.get(f"{self.url}/health-check", timeout=10).json()["status"]
        return status

    def wait_until_ready(self) -> None:
        """Wait for READY.

        Raises:
            RuntimeError: The server crashed, its setup failed, or it took too long; the message has its log.
        """
        deadline = time.monotonic() + READY_SECONDS
        status = "not listening"
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server exited with {self.process.returncode}:\n{self.log()}")
            with contextlib.suppress(requests.ConnectionError):
                status = self.health()
            if status == "READY":
                return
            if status in ("SETUP_FAILED", "DEFUNCT"):
                raise RuntimeError(f"the server says {status}:\n{self.log()}")
            time.sleep(0.1)
        raise RuntimeError(f"the server was {status} after {READY_SECONDS:.0f} s:\n{self.log()}")

    def wait_until_gone(self, name: str) -> None:
        """Wait until no temporary file has the name."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while name in self.temporary_files():
            assert time.monotonic() < deadline, f"{name} is still there:\n{self.log()}"
            time.sleep(0.002)

    def log(self, start: int = 0) -> str:
        """Return the log from a byte on, with one message a line."""
        lines = self.log_path.read_bytes()[start:].decode(errors="replace").splitlines()
        return "\n".join(map(_readable, lines))

    def temporary_files(self) -> list[str]:
        """Return the sorted names of all temporary files."""
        return sorted(path.name for path in self.temporary.rglob("*") if path.is_file())

    def anonymous_bytes(self) -> int:
        """Return the memory of the server and its children."""
        return anonymous_bytes(self.process.pid)


@contextlib.contextmanager
def started_cog_server(folder: Path, *arguments: str, **environment: str) -> Iterator[CogServer]:
    """Start `scripts/serve` in a copy of the project with this Python in place of `.venv`, and kill it at the end.

    It needs the key `KEY`, and may fetch from this machine.

    Args:
        folder: An empty folder for the copy, the log and all temporary files.
        arguments: Arguments of `scripts/serve`.
        environment: More environment variables. The tests' own `SHARP_*` and `COG_*` variables are left out.
    """
    for name in ("predict.py", "openapi_schema.json", "sharp_cog"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "scripts").mkdir()
    (folder / "scripts" / "serve").symlink_to(ROOT / "scripts" / "serve")
    environment_script = (
        '[[ "$EXTRAS" == cog,guard,preview ]]\nroot="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"\n'
    )
    (folder / "scripts" / "environment").write_text(environment_script, encoding="ascii")
    temporary = folder / "tmp"
    temporary.mkdir()
    port = free_port()
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("SHARP_", "COG_", "MALLOC_"))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    log_path = folder / "server.log"
    # `Outside` is at a private address.
    access = {"SHARP_API_KEY": KEY, "SHARP_FETCH_PRIVATE": "true"}
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [str(folder / "scripts" / "serve"), "--port", str(port), *arguments],
            env={**inherited, "PATH": path, "TMPDIR": str(temporary), "SHARP_DEVICE": "cpu", **access, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Killing the process group ends the worker, too.
        )
    try:
        yield CogServer(url=f"http://127.0.0.1:{port}", process=process, log_path=log_path, temporary=temporary)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


def data_uri(content: bytes, mime_type: str = "application/octet-stream") -> str:
    return f"data:{mime_type};base64,{base64.b64encode(content).decode()}"


def content_of_data_uri(uri: str) -> bytes:
    head, _, body = uri.partition(";base64,")
    assert head.startswith("data:"), uri[:80]
    return base64.b64decode(body, validate=True)


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A file that the server has sent by PUT."""

    path: str
    num_bytes: int
    sha256: str


@dataclass(kw_only=True)
class Outside:
    """A web server that offers images (GET), takes uploads (PUT) and webhooks (POST).

    Attributes:
        url: Address of the server, without a slash at the end.
        files: Content of the files for GET, by path.
        uploads: Files that were sent by PUT, in order, without their content.
        webhooks: JSON that was sent by POST.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    uploads: list[Upload] = field(default_factory=list)
    webhooks: queue.Queue[dict[str, Any]] = field(default_factory=queue.Queue)

    def offer(self, content: bytes) -> str:
        """Offer a file and return its URL, which is the same for the same content."""
        path = f"/{hashlib.sha256(content).hexdigest()}"
        self.files[path] = content
        return f"{self.url}{path}"

    def next_webhook(self) -> dict[str, Any]:
        return self.webhooks.get(timeout=ANSWER_SECONDS)


@contextlib.contextmanager
def started_outside() -> Iterator[Outside]:
    """Run an `Outside` in a thread."""
    outside = Outside()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = outside.files.get(self.path)
            self.answer(404 if content is None else 200, content or b"")

        def do_PUT(self) -> None:
            remaining = num_bytes = int(self.headers["Content-Length"])
            digest = hashlib.sha256()
            while remaining and (chunk := self.rfile.read(min(remaining, 1 << 20))):
                remaining -= len(chunk)
                digest.update(chunk)
            outside.uploads.append(
                Upload(path=self.path, num_bytes=num_bytes - remaining, sha256=digest.hexdigest()),
            )
            self.answer(200)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            outside.webhooks.put(json.loads(body))
            self.answer(200)

        def answer(self, status: int, content: bytes = b"") -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    outside.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield outside
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def _readable(line: str) -> str:
    """Return the message in one of the server's JSON lines, or any other line as it is."""
    try:
        record = json.loads(line)
        fields = record["fields"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return line
    rest = {name: value for name, value in fields.items() if name not in ("message", "source", "prediction_id")}
    return f"{record.get('level')} {record.get('target')}: {fields.get('message')}{f' {rest}' if rest else ''}"

"""`sharp-cog serve --http` in its own process, as a person starts it, and its log."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.e2e.processes import free_port

READY_SECONDS = 120.0


@dataclass(kw_only=True)
class HttpServer:
    """A server that the command has started.

    Attributes:
        url: Address of the server.
        process: The server.
        log_path: File with the output of the server.
        temporary: Folder of all its temporary files.
    """

    url: str
    process: subprocess.Popen[bytes]
    log_path: Path
    temporary: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def wait_until_ready(self) -> None:
        """Wait until the server reports that it is healthy.

        Raises:
            RuntimeError: The server ended, its model cannot be loaded, or it took too long; the message has its log.
        """
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server exited with {self.process.returncode}:\n{self.log()}")
            with contextlib.suppress(requests.ConnectionError):
                health = requests.get(f"{self.url}/health", timeout=10)
                if health.status_code == 200:
                    return
                if health.json()["status"] == "failed":
                    raise RuntimeError(f"the model cannot be loaded:\n{self.log()}")
            time.sleep(0.05)
        raise RuntimeError(f"the server was not ready after {READY_SECONDS:.0f} s:\n{self.log()}")


@contextlib.contextmanager
def started_http_server(
    folder: Path, *flags: str, descriptors: tuple[int, int] | None = None, **environment: str
) -> Iterator[HttpServer]:
    """Start the command without waiting for it, and kill it at the end.

    Args:
        folder: A folder for the log and all temporary files.
        flags: Flags of `sharp-cog serve --http`.
        descriptors: Soft and hard limit of its open descriptors.
        environment: More environment variables.
    """
    port = free_port()
    temporary, log_path = folder / "tmp", folder / "server.log"
    temporary.mkdir(parents=True)

    def prepare() -> None:
        # If the tests are a shell's background job, they ignore Ctrl-C, and children inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, descriptors)

    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "sharp_cog", "serve", "--http", "--port", str(port), *flags],
            env={**os.environ, "TMPDIR": str(temporary), **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # A Ctrl-C on the terminal is meant for the tests.
            preexec_fn=prepare,
        )
    try:
        yield HttpServer(url=f"http://127.0.0.1:{port}", process=process, log_path=log_path, temporary=temporary)
    finally:
        process.kill()
        process.wait(timeout=30)

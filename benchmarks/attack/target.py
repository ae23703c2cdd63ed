"""Servers under attack: their address, a good request, their resources."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import requests

from benchmarks.attack.sockets import Address
from benchmarks.soak.images import npy, slope
from tests.e2e.cog_server import CogServer, data_uri, started_cog_server
from tests.e2e.http_server import HttpServer, started_http_server
from tests.e2e.processes import anonymous_bytes, ask_all, processes_of
from tests.images import png

GOOD_SECONDS = 120.0
"""Time limit of a good request."""


class Target(Protocol):
    """A server under attack."""

    @property
    def address(self) -> Address:
        """Address of the server."""

    def ask(self) -> str:
        """Send a good request, and return `right`, or what is wrong with the answer."""

    def memory(self) -> int:
        """Return the bytes of memory that the server has allocated."""

    def disk(self) -> int:
        """Return the bytes of its temporary files."""

    def num_fds(self) -> int:
        """Return the number of open descriptors."""


@dataclass(kw_only=True)
class HttpTarget:
    """`sharp-cog serve --http` in its own process, with the model `lift`."""

    server: HttpServer
    expected: str = ""

    @property
    def address(self) -> Address:
        """Address of the server."""
        return Address(host="127.0.0.1", port=self.server.port)

    def ask(self) -> str:
        """Send a good request of a small photograph and its depth map, and compare the answer with the first one."""
        try:
            answer = requests.post(
                f"{self.server.url}/predict/ply",
                files={"file": png(320, 240), "depth": npy(slope(320, 240))},
                data={"max_gaussians": "5000"},
                headers={"Connection": "close"},
                timeout=GOOD_SECONDS,
            )
        except requests.RequestException as error:
            return type(error).__name__
        if answer.status_code != 200:
            return f"{answer.status_code} {answer.text[:100]}"
        digest = hashlib.sha256(answer.content).hexdigest()
        self.expected = self.expected or digest
        return "right" if digest == self.expected else "wrong bytes"

    def memory(self) -> int:
        """Return the anonymous memory of the process."""
        return anonymous_bytes(self.server.process.pid)

    def disk(self) -> int:
        """Return the bytes of all temporary files, unlinked ones included."""
        found: dict[int, int] = {}
        for path in self._paths():
            with contextlib.suppress(OSError):  # It was deleted meanwhile.
                status = path.stat()
                found[status.st_ino] = status.st_blocks * 512
        return sum(found.values())

    def _paths(self) -> Iterator[Path]:
        folder = self.server.temporary
        yield from folder.rglob("*")
        # Uploads have no name; only the process's descriptors lead to them.
        for link in Path(f"/proc/{self.server.process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(link.readlink()).startswith(str(folder)):
                    yield link

    def num_fds(self) -> int:
        """Return the number of open descriptors."""
        return sum(ask_all(processes_of(self.server.process.pid), lambda process: process.num_fds()))


@contextlib.contextmanager
def http_target(
    folder: Path, *, descriptors: tuple[int, int] | None = None, **environment: str
) -> Iterator[HttpTarget]:
    """Start the HTTP service, and make some good requests, so that everything is loaded.

    Args:
        folder: An empty folder for all files of the service.
        descriptors: Soft and hard limit of its open descriptors.
        environment: More environment variables.
    """
    flags = ("--model", "lift", "--device", "cpu")
    with started_http_server(folder, *flags, descriptors=descriptors, **environment) as server:
        server.wait_until_ready()
        target = HttpTarget(server=server)
        for _ in range(3):
            assert target.ask() == "right"
        time.sleep(0.5)
        yield target


@dataclass(kw_only=True)
class CogTarget:
    """`scripts/serve`, Cog's server behind the guard, without a key, with the model `lift`."""

    server: CogServer
    expected: str = ""

    @property
    def address(self) -> Address:
        """Address of the server."""
        host, _, port = self.server.url.removeprefix("http://").partition(":")
        return Address(host=host, port=int(port), content_type="application/json")

    def ask(self) -> str:
        """Send a good request of a small photograph and its depth map, and compare the output with the first one."""
        try:
            answer = self.server.send("POST", "/predictions", data=cog_request(max_gaussians=5000), headers=_AS_JSON)
        except requests.RequestException as error:
            return type(error).__name__
        if answer.status_code != 200:
            return f"{answer.status_code} {answer.text[:100]}"
        digest = hashlib.sha256(str(answer.json().get("output")).encode()).hexdigest()
        self.expected = self.expected or digest
        return "right" if digest == self.expected else "wrong output"

    def memory(self) -> int:
        """Return the anonymous memory of the guard, coglet and its worker."""
        return anonymous_bytes(self.server.process.pid)

    def disk(self) -> int:
        """Return the bytes of all temporary files."""
        total = 0
        for path in self.server.temporary.rglob("*"):
            with contextlib.suppress(OSError):  # It was deleted meanwhile.
                total += path.stat().st_blocks * 512
        return total

    def num_fds(self) -> int:
        """Return the number of open descriptors."""
        return sum(ask_all(processes_of(self.server.process.pid), lambda process: process.num_fds()))


_AS_JSON = {"Content-Type": "application/json", "Connection": "close"}


@contextlib.contextmanager
def cog_target(folder: Path) -> Iterator[CogTarget]:
    """Start Cog's server, and make some good requests, so that everything is loaded."""
    with started_cog_server(folder, "--model", "lift", SHARP_API_KEY="", SHARP_FETCH_PRIVATE="") as server:
        server.wait_until_ready()
        target = CogTarget(server=server)
        for _ in range(3):
            assert target.ask() == "right"
        yield target


def cog_request(**inputs: object) -> bytes:
    """Return the body of a prediction; without options its answer is a whole splat of 66 MB."""
    files = {"image": data_uri(png(320, 240)), "depth": data_uri(npy(slope(320, 240)))}
    return json.dumps({"input": {**files, **inputs}}).encode()


def whole_files() -> dict[str, bytes]:
    """Return the files of a request whose answer is a whole splat of 66 MB."""
    return {"file": png(320, 240), "depth": npy(slope(320, 240))}

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
from tests.e2e.cog_server import content_of_data_uri, data_uri
from tests.e2e.http_server import HttpServer, started_http_server
from tests.e2e.processes import anonymous_bytes, ask_all, processes_of
from tests.images import png
from tests.serving.guarded_cog import IMAGE, GuardedCog, guarded_cog

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
    """Cog's server behind the guard, without a key, with a predictor that has no model and takes 0.2 s."""

    server: GuardedCog

    @property
    def address(self) -> Address:
        """Address of the server."""
        host, _, port = self.server.url.removeprefix("http://").partition(":")
        return Address(host=host, port=int(port), content_type="application/json")

    def ask(self) -> str:
        """Send a good request, and compare the output with what the predictor makes of it."""
        headers = {"Content-Type": self.address.content_type, "Connection": "close"}
        try:
            answer = requests.post(
                f"{self.server.url}/predictions", data=cog_request(times=100), headers=headers, timeout=GOOD_SECONDS
            )
        except requests.RequestException as error:
            return type(error).__name__
        if answer.status_code != 200:
            return f"{answer.status_code} {answer.text[:100]}"
        expected = data_uri(100 * content_of_data_uri(IMAGE.replace("data:;", "data:application/octet-stream;")))
        return "right" if answer.json().get("output") == expected else "wrong output"

    def memory(self) -> int:
        """Return the anonymous memory of the guard, coglet and its worker."""
        return anonymous_bytes(self.server.process.pid)

    def disk(self) -> int:
        """Return the bytes of all temporary files."""
        total = 0
        for path in (self.server.folder / "tmp").rglob("*"):
            with contextlib.suppress(OSError):  # It was deleted meanwhile.
                total += path.stat().st_blocks * 512
        return total

    def num_fds(self) -> int:
        """Return the number of open descriptors."""
        return sum(ask_all(processes_of(self.server.process.pid), lambda process: process.num_fds()))


@contextlib.contextmanager
def cog_target(folder: Path) -> Iterator[CogTarget]:
    """Start Cog's server, and make some good requests, so that everything is loaded."""
    with guarded_cog(folder / "server") as server:
        target = CogTarget(server=server)
        for _ in range(3):
            assert target.ask() == "right"
        yield target


def cog_request(*, times: int) -> bytes:
    """Return the body of a prediction, whose output has five bytes for each time."""
    return json.dumps({"input": {"image": IMAGE, "times": times, "seconds": 0.2}}).encode()


def whole_files() -> dict[str, bytes]:
    """Return the files of a request whose answer is a whole splat of 66 MB."""
    return {"file": png(320, 240), "depth": npy(slope(320, 240))}

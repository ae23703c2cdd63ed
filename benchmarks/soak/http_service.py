"""The HTTP service under soak: `sharp-cog serve --http` in its own process."""

from __future__ import annotations

import contextlib
import http.client
import re
import select
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import requests

from benchmarks.attack.http_attacks import mixed, silent_url
from benchmarks.attack.sockets import Address, attacking
from benchmarks.soak.faults import faults
from benchmarks.soak.mix import ARRAYS, Case, Fault, Raw, Request
from benchmarks.soak.right import digest_of
from benchmarks.soak.server import ANSWER_SECONDS, Answer, Started, complaints_in, own_folders
from tests.e2e.cog_server import Outside, started_outside
from tests.e2e.http_server import HttpServer, started_http_server

_COUNTED = re.compile(r'^sharp_requests_total\{door="http",outcome="(\w+)"\} (\d+)', re.MULTILINE)
_STAGES = {"while predicting": "predict", "while it writes": "encode"}


class SoakedHttp(Started):
    """Sends forms, and disconnects in the middle of some."""

    name = "http"
    moments = ("while uploading", "while queued", "while predicting", "while it writes", "while it answers")

    def __init__(self, server: HttpServer, outside: Outside, good: Request, folder: Path) -> None:
        super().__init__(server.process.pid, folder)
        self._server, self._outside, self._good = server, outside, good
        self._host = server.url.removeprefix("http://")
        self._sessions = threading.local()
        self._addresses: dict[bytes, str] = {}
        self._is_attacked = False

    @contextlib.contextmanager
    def attackers(self) -> Iterator[None]:
        """Let attackers of all kinds work in the block."""
        self._is_attacked = True
        with silent_url() as url, attacking(mixed(Address(host="127.0.0.1", port=self._server.port), url)) as ends:
            yield
        print(f"ends of the attackers' requests: {dict(sorted(ends.counts.items()))}", flush=True)

    def faults(self) -> list[Fault]:
        """Return all faults of requests to this server."""
        return faults("http", self._good, self._outside.url)

    def ask(self, case: Case) -> Answer:
        """Send one request, and read its answer or disconnect."""
        try:
            if case.kind == "cancelled":
                return self._hang_up(case)
            if isinstance(case.request, Raw):
                return self._send_raw(case.request)
            return self._send(case.request)
        except (requests.Timeout, TimeoutError):
            return Answer(outcome=f"no answer in {ANSWER_SECONDS:.0f} s", is_silent=True)
        except (requests.RequestException, OSError, http.client.HTTPException) as error:
            return Answer(outcome=f"no answer: {type(error).__name__}: {error}")

    def _send(self, request: Request) -> Answer:
        if not hasattr(self._sessions, "own"):
            self._sessions.own = requests.Session()
        response = self._sessions.own.send(self._prepared(request), timeout=ANSWER_SECONDS)
        if response.status_code != 200:
            return Answer(outcome=f"{response.status_code} {response.json()['code']}")
        return Answer(outcome="ok", digest=digest_of(request.output, response.content))

    def _send_raw(self, raw: Raw) -> Answer:
        with self._connected() as connection:
            connection.putrequest("POST", "/predict/ply")
            connection.putheader("Content-Type", raw.content_type)
            connection.putheader("Content-Length", str(raw.num_bytes_claimed or len(raw.body)))
            connection.endheaders(raw.body)
            response = connection.getresponse()
            code = re.search(rb'"code":"(\w+)"', response.read())
            return Answer(outcome=f"{response.status} {code[1].decode() if code else 'without a code'}")

    def _prepared(self, request: Request, request_id: str = "") -> requests.PreparedRequest:
        files: dict[str, tuple[str, bytes]] = {}
        form = {name: str(value) for name, value in request.options.items()}
        if isinstance(request.image, bytes) and not request.by_url:
            files["file"] = ("beach.jpg", request.image)
        elif request.image is not None:
            form["image_url"] = request.image if isinstance(request.image, str) else self._outside.offer(request.image)
        if request.depth is not None:
            files["depth"] = ("depth.npy", request.depth)
        headers = {"Accept": "application/x-npz"} if request.output == "npz" else {}
        if request_id:
            headers["X-Request-Id"] = request_id
        path = "/predict" if request.output in ARRAYS else f"/predict/{request.output}"
        return requests.Request("POST", self._server.url + path, headers=headers, files=files, data=form).prepare()

    def _hang_up(self, case: Case) -> Answer:
        assert isinstance(case.request, Request)
        request_id = uuid.uuid4().hex
        prepared = self._prepared(case.request, request_id)
        body = prepared.body
        assert isinstance(body, bytes)
        with self._connected() as connection:
            connection.putrequest("POST", prepared.path_url)
            for name, value in prepared.headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            if case.name == "while uploading":
                connection.send(body[: int(len(body) * case.fraction)])
                return Answer(outcome="cancelled")
            connection.send(body)
            if case.name == "while queued":
                time.sleep(0.05 * case.fraction)
            elif case.name == "while it answers":
                with contextlib.closing(connection.getresponse()) as response:
                    assert response.status == 200, response.status
                    response.read(1 + int(1e6 * case.fraction))
            else:
                self._wait_for_stage(request_id, _STAGES[case.name], connection.sock)
                time.sleep(0.2 * case.fraction)
        return self._gone(request_id)

    def _wait_for_stage(self, request_id: str, stage: str, answering: socket.socket) -> None:
        """Wait until a request is at a stage or beyond it, or its answer comes."""
        deadline = time.monotonic() + ANSWER_SECONDS
        order = ("queued", "decode", "predict", "encode")
        while (found := self._stage(request_id)) is None or order.index(found) < order.index(stage):
            if time.monotonic() > deadline:
                raise TimeoutError
            if select.select([answering], [], [], 0.005)[0]:
                return

    def _gone(self, request_id: str) -> Answer:
        """Wait until the server has dropped the request of a client that has disconnected."""
        deadline = time.monotonic() + ANSWER_SECONDS
        while (stage := self._stage(request_id)) is not None:
            if time.monotonic() > deadline:
                return Answer(outcome=f"still at {stage} after {ANSWER_SECONDS:.0f} s", is_silent=True)
            time.sleep(0.01)
        return Answer(outcome="cancelled")

    def _stage(self, request_id: str) -> str | None:
        response = requests.get(f"{self._server.url}/progress/{request_id}", timeout=ANSWER_SECONDS)
        return None if response.status_code == 404 else str(response.json()["stage"])

    def complaints(self, cases: Sequence[Case]) -> list[str]:
        """Return differences between the service's metrics and the requests, and the internal errors in its log."""
        text = requests.get(f"{self._server.url}/metrics", timeout=ANSWER_SECONDS).text
        counted = Counter({outcome: int(number) for outcome, number in _COUNTED.findall(text)})
        refused = Counter(case.expected.partition(" ")[2] for case in cases if case.kind == "bad")
        del refused["request_too_large"]  # The body is refused before the request is counted.
        found = [
            f"the service counted {counted[code]} requests as {code}, of {number} that were sent"
            for code, number in refused.items()
            if (counted[code] < number if self._is_attacked else counted[code] != number)
        ]
        if self._is_attacked:  # The attackers' requests are counted as well.
            return found + complaints_in(self._server.log())
        # A client may disconnect too late for the service to notice.
        served, asked = counted["ok"] + counted["hung_up"], sum(case.kind != "bad" for case in cases)
        if served != asked:
            found.append(f"the service counted {served} requests as ok or hung_up, of {asked} that were sent")
        least = sum(case.name == "while uploading" for case in cases)
        if counted["hung_up"] < least:
            found.append(
                f"the service counted {counted['hung_up']} requests as hung_up, of {least} that never came whole"
            )
        others = counted.keys() - refused.keys() - {"ok", "hung_up"}
        found += [
            f"the service counted {counted[code]} requests as {code}, which nobody sent" for code in sorted(others)
        ]
        return found + complaints_in(self._server.log())

    @contextlib.contextmanager
    def _connected(self) -> Iterator[http.client.HTTPConnection]:
        with contextlib.closing(http.client.HTTPConnection(self._host, timeout=ANSWER_SECONDS)) as connection:
            yield connection


@contextlib.contextmanager
def soaked_http(folder: Path, good: Request) -> Iterator[SoakedHttp]:
    """Start the service with all of its files in the folder, and wait until it is ready.

    Args:
        folder: An empty folder.
        good: A good request, from which the bad ones are made.
    """
    # Images by URL come from loopback, which is refused by default.
    environment = {**own_folders(folder), "SHARP_FETCH_PRIVATE": "true", "SHARP_MAX_BODY_MEGABYTES": "50"}
    with (
        started_outside() as outside,
        started_http_server(folder, "--model", "lift", "--device", "cpu", descriptors=None, **environment) as server,
    ):
        server.wait_until_ready()
        yield SoakedHttp(server, outside, good, folder)

"""The server under the HTTP service: connections that are held, cut and closed, and the end of the process."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from sharp_cog.config.services import ServiceSettings
from tests.gated import Gated
from tests.service import Service, serving

HALF = b"POST /predict/splat HTTP/1.1\r\nHost: a\r\n"
MULTIPART = b"Content-Type: multipart/form-data; boundary=x\r\n"
BEGIN = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
END = b"\r\n--x--\r\n"


@pytest.fixture
def silent(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Assert that nothing is logged with a traceback."""
    yield
    assert not [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]


@contextlib.contextmanager
def connected(service: Service, sent: bytes = b"", *, receive_bytes: int | None = None) -> Iterator[socket.socket]:
    """Connect to a service, and send something."""
    with socket.socket() as sock:
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.settimeout(20)
        sock.connect(("127.0.0.1", service.port))
        sock.sendall(sent)
        yield sock


def is_cut(sock: socket.socket) -> bool:
    """Wait until the server ends a connection without an answer."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def all_of(sock: socket.socket) -> bytes:
    content = b""
    while chunk := sock.recv(1 << 16):
        content += chunk
    return content


def ask(service: Service, num_bytes: int = 3, **more: Any) -> requests.Response:
    return requests.post(f"{service.url}/predict/splat", files={"file": bytes(num_bytes)}, timeout=20, **more)


def counted(service: Service, name: str, **labels: str) -> float:
    """Return a value of the service's metrics, 0 if it has none."""
    text = ",".join(f'{label}="{value}"' for label, value in labels.items())
    prefix = f"{name}{{{text}}} " if text else f"{name} "
    lines = requests.get(f"{service.url}/metrics", timeout=10).text.splitlines()
    return next((float(line.removeprefix(prefix)) for line in lines if line.startswith(prefix)), 0.0)


def until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_headers_have_a_time_limit_on_new_and_on_used_connections(silent: None) -> None:
    with serving(Gated, ServiceSettings(header_seconds=0.2)) as service:
        with connected(service, HALF) as slow, connected(service) as mute:
            assert is_cut(slow)
            assert is_cut(mute)
        with connected(service, b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n") as used:
            assert used.recv(1 << 16).startswith(b"HTTP/1.1 200")
            used.sendall(HALF)
            assert is_cut(used)
        assert counted(service, "sharp_refusals_total", reason="headers") == 3


def test_a_request_under_way_has_no_limit_for_headers() -> None:
    pipeline = Gated(is_open=False)
    with serving(lambda: pipeline, ServiceSettings(header_seconds=0.2)) as service, ThreadPoolExecutor(1) as client:
        answer = client.submit(ask, service)
        time.sleep(0.5)
        pipeline.gate.set()
        assert answer.result().status_code == 200


def test_the_connection_that_has_been_idle_for_longest_makes_room_for_a_new_one(silent: None) -> None:
    with serving(Gated, ServiceSettings(max_connections=4)) as service, contextlib.ExitStack() as stack:
        held = [stack.enter_context(connected(service, HALF)) for _ in range(12)]
        assert ask(service).status_code == 200
        assert all(is_cut(sock) for sock in held[:8])
        held[-1].sendall(b"Content-Length: 0\r\nConnection: close\r\n\r\n")
        assert all_of(held[-1]).startswith(b"HTTP/1.1 422"), "the youngest ones stay"
        assert counted(service, "sharp_refusals_total", reason="idle_connection") >= 8


def test_connections_with_requests_are_kept_and_a_new_one_is_refused() -> None:
    pipeline = Gated(is_open=False)
    with serving(lambda: pipeline, ServiceSettings(max_connections=2)) as service, ThreadPoolExecutor(2) as clients:
        first = [clients.submit(ask, service) for _ in range(2)]
        until(lambda: pipeline.at_once == 1)
        until(lambda: ask_health(service) == (503, "busy"))
        pipeline.gate.set()
        assert [answer.result().status_code for answer in first] == [200, 200]


def ask_health(service: Service) -> tuple[int, str]:
    answer = requests.get(f"{service.url}/health", headers={"Connection": "close"}, timeout=10)
    return answer.status_code, answer.json().get("code", "")


def test_headers_without_end_are_refused() -> None:
    with serving(Gated, ServiceSettings(max_header_kilobytes=4)) as service:
        with connected(
            service, HALF + b"X-Short: " + b"a" * 3000 + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        ) as sock:
            assert all_of(sock).startswith(b"HTTP/1.1 422")
        with connected(service, HALF + b"X-Long: " + b"a" * 5000) as sock:
            assert all_of(sock).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("path", [b"/predict/splat", b"/nowhere"])
def test_a_refusal_arrives_at_a_client_that_sends_its_whole_body_first(path: bytes) -> None:
    """The system resets a connection that is closed with unread bytes, and the client would lose the answer."""
    body = bytes(8_000_000)
    head = b"POST " + path + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    with serving(Gated, ServiceSettings(max_body_megabytes=1)) as service, connected(service, head) as sock:
        time.sleep(0.1)  # The answer is there before the body.
        sock.sendall(body)
        time.sleep(0.1)
        assert all_of(sock).startswith(b"HTTP/1.1 413")


def test_stalled_uploads_lose_their_places_and_a_good_request_gets_one(silent: None) -> None:
    settings = ServiceSettings(max_uploads=4, stall_seconds=1)
    with serving(Gated, settings) as service, contextlib.ExitStack() as stack:
        head = HALF + MULTIPART + b"Content-Length: 190000000\r\n\r\n" + BEGIN
        stalled = [stack.enter_context(connected(service, head + bytes(100_000))) for _ in range(12)]
        until(lambda: counted(service, "sharp_uploads") == 4)
        assert ask(service).status_code == 200
        ends = [all_of(sock) for sock in stalled]
        assert {end[:12] for end in ends} <= {b"HTTP/1.1 408", b"HTTP/1.1 503"}
        assert any(b'"code":"too_slow"' in end for end in ends)
        assert counted(service, "sharp_refusals_total", reason="slow_upload") >= 4
        assert counted(service, "sharp_uploads") == 0


def test_an_answer_that_nobody_reads_is_cut_deleted_and_not_counted_as_ok(silent: None) -> None:
    body = BEGIN + bytes(200_000) + END  # A splat of 6.4 MB.
    with serving(Gated, ServiceSettings(stall_seconds=0.3)) as service:
        head = HALF + MULTIPART + b"Content-Length: %d\r\n\r\n" % len(body)
        with connected(service, head + body, receive_bytes=4096) as sock:
            assert sock.recv(12) == b"HTTP/1.1 200"
            until(lambda: counted(service, "sharp_answers") == 1)
            until(lambda: counted(service, "sharp_answers") == 0)
            with contextlib.suppress(ConnectionResetError):
                assert len(all_of(sock)) < 32 * 200_000
        assert counted(service, "sharp_requests_total", door="http", outcome="too_slow") == 1
        assert counted(service, "sharp_requests_total", door="http", outcome="ok") == 0
        assert ask(service).status_code == 200


def test_a_client_that_reads_slowly_but_steadily_gets_its_whole_answer() -> None:
    body = BEGIN + bytes(100_000) + END
    with serving(Gated, ServiceSettings(stall_seconds=0.3, min_kilobytes_per_second=500)) as service:
        head = HALF + MULTIPART + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        with connected(service, head + body, receive_bytes=1 << 17) as sock:
            content = b""
            while chunk := sock.recv(1 << 15):  # Some 2 MB a second, for over a second.
                content += chunk
                time.sleep(0.015)
        assert len(content.partition(b"\r\n\r\n")[2]) == 32 * 100_000


def test_stopping_drops_what_has_not_reached_the_device_and_finishes_what_has(silent: None) -> None:
    pipeline = Gated(is_open=False)
    settings = ServiceSettings(stop_seconds=0.5)
    with ThreadPoolExecutor(8) as clients, serving(lambda: pipeline, settings) as service:
        under_way = clients.submit(ask, service, 5)
        until(lambda: pipeline.at_once == 1)
        queued = [clients.submit(ask, service, 4) for _ in range(6)]
        until(lambda: requests.get(f"{service.url}/health", timeout=10).json()["requests"] == 7)
        upload = HALF + MULTIPART + b"Content-Length: 190000000\r\n\r\n" + BEGIN
        with connected(service, upload) as stalled, connected(service, HALF):
            until(lambda: counted(service, "sharp_uploads") == 1)
            service.server.should_exit = True
            assert b'"error":"the service is stopping' in all_of(stalled)
            for answer in queued:
                assert (answer.result().status_code, answer.result().json()["code"]) == (503, "busy")
            assert not under_way.done()
            pipeline.gate.set()
            assert len(under_way.result().content) == 5 * 32
            until(lambda: not any(thread.name == "device_0" for thread in threading.enumerate()))
    assert pipeline.predicted == [5]


def test_stopping_does_not_wait_for_an_answer_that_nobody_reads(silent: None) -> None:
    body = BEGIN + bytes(200_000) + END
    with serving(Gated, ServiceSettings(stop_seconds=0.2)) as service:
        head = HALF + MULTIPART + b"Content-Length: %d\r\n\r\n" % len(body)
        with connected(service, head + body, receive_bytes=4096) as sock:
            assert sock.recv(12) == b"HTTP/1.1 200"
            start = time.monotonic()
            service.server.should_exit = True
            until(lambda: not service.thread.is_alive())
            assert time.monotonic() - start < 5

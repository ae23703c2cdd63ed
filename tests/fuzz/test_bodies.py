"""Requests of the right shape with wrong contents, which mutated bytes hardly ever have."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sharp_cog.config.options import PredictOptions
from sharp_cog.config.parameters import parameters
from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import FetchError, InputError
from sharp_cog.formats import FORMATS
from sharp_cog.serving.fetch import fetch
from sharp_cog.serving.runpod import create_handler
from tests.fuzz.asgi import Answer, in_process, judge
from tests.fuzz.raw_server import RawServer
from tests.fuzz.targets_requests import call_modal, http_seeds
from tests.gated import Gated
from tests.service import Service, serving
from tests.test_text import nested

CLOSED = ServiceSettings(fetch_seconds=2)
OPTIONS = [option.name for option in fields(PredictOptions)]
NAMES = [*OPTIONS, "f_px", "format", "image", "image_base64", "image_url", "depth", "depth_url", "upload_url", "images"]
TEXTS = st.text(st.characters(), max_size=20)  # Lone surrogates as well.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 2**63, 1e308, -0.0, float("nan"), float("inf"), 1 << 70, "x" * 10_000]),
    st.floats(),
    TEXTS,
    st.sampled_from(["aGFsbG8=", "data:;base64,YQ==", "http://[::1]/", "nan", "1e999", "true", "\ud800"]),
    st.sampled_from([choice for about in parameters(PredictOptions) for choice in about.choices]),
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4))
REQUESTS = st.dictionaries(st.sampled_from(NAMES) | TEXTS, VALUES, max_size=6)
CHECKED = settings(deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
QUANTITIES = [25, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]


def is_answer(told: dict[str, Any]) -> None:
    assert told.get("code") != "internal_error", told
    assert told.get("error", "").isprintable()
    assert len(told.get("error", "")) < 1000
    json.dumps(told, ensure_ascii=False).encode()


@pytest.mark.parametrize("num", QUANTITIES)
def test_the_worker_answers_any_event(num: int) -> None:
    handler = create_handler(Gated(), CLOSED)

    @settings(CHECKED, max_examples=num)
    @given(VALUES | REQUESTS | REQUESTS.map(lambda values: {"image": "aGFsbG8=", **values}))
    def check(values: object) -> None:
        answer = handler({"id": "job", "input": values})
        for told in (answer, *answer.get("results", [])):
            is_answer(told)

    check()
    assert handler({"id": "job", "input": {"image": "aGFsbG8="}})["status"] == "success"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [nested(10_000), 10**100_000, "\ud800" * 10**6], ids=["nested", "integer", "text"])
def test_a_monstrous_value_in_an_event_is_the_callers_fault(name: str, value: object) -> None:
    answer = create_handler(Gated(), CLOSED)({"id": "job", "input": {"image": "aGFsbG8=", name: value}})
    is_answer(answer)
    assert "code" in answer or "results" in answer


@pytest.mark.parametrize("num", QUANTITIES)
def test_the_functions_on_modal_accept_or_refuse_any_arguments(num: int) -> None:
    @settings(CHECKED, max_examples=num)
    @given(st.dictionaries(st.sampled_from([*OPTIONS, "f_px", "image_bytes", "depth_bytes"]), VALUES, max_size=4))
    def check(values: dict[str, Any]) -> None:
        try:
            call_modal(json.dumps(values).encode())
        except InputError as error:
            is_answer({"error": str(error), "code": error.code})

    check()


@pytest.fixture(autouse=True, scope="module")
def _closed_behind_the_tests() -> Iterator[None]:
    yield
    in_process().close()
    in_process.cache_clear()


def form(parts: list[tuple[str, str | None, bytes]], head: bytes = b"") -> bytes:
    """Return a form as it is sent. Each part has a name, the name of a file or None, and content."""
    sent = bytearray(head)
    for name, filename, content in parts:
        file = b"" if filename is None else b'; filename="%s"' % filename.encode("utf-8", "surrogatepass")
        disposition = b'form-data; name="%s"%s' % (name.encode("utf-8", "surrogatepass"), file)
        sent += b"--b\r\nContent-Disposition: %s\r\n\r\n%s\r\n" % (disposition, content)
    return bytes(sent + b"--b--\r\n")


def send(body: bytes, content_type: bytes, path: str = "/predict/splat", **headers: bytes) -> Answer:
    named = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
    return in_process().ask("POST", path, [(b"content-type", content_type), *named], body)


MULTIPART = b"multipart/form-data; boundary=b"
PARTS = st.tuples(
    st.sampled_from([*OPTIONS, "f_px", "file", "file", "depth", "image_url"]) | TEXTS,
    st.none() | st.sampled_from(["a.jpg", ""]) | TEXTS,
    st.binary(max_size=30)
    | SCALARS.map(lambda value: b"" if isinstance(value, int) else str(value).encode("utf-8", "replace")),
)


@pytest.mark.parametrize("num", QUANTITIES)
def test_the_service_answers_any_form(num: int) -> None:
    charsets = st.sampled_from(["", "; charset=utf-8", "; charset=latin-1", "; charset=utf-16", "; charset=idna"])
    paths = st.sampled_from([*(f"/predict/{name}" for name in FORMATS if name != "mp4"), "/predict", "/predict/obj"])

    @settings(CHECKED, max_examples=num)
    @given(st.lists(PARTS, max_size=5), charsets | TEXTS.map(lambda text: f"; charset={text}"), paths)
    def check(parts: list[Any], charset: str, path: str) -> None:
        content_type = MULTIPART + charset.encode("utf-8", "replace")
        try:
            judge(send(form(parts), content_type, path))
        except InputError as error:
            is_answer({"error": str(error), "code": error.code})

    check()
    assert send(form([("file", "a.jpg", b"abc")]), MULTIPART).status == 200


@pytest.mark.parametrize(
    "charset", ["idna", "punycode", "undefined", "unicode_escape", "utf-7", "utf-16", "hex", "zlib", "a\0b", "x" * 9999]
)
def test_an_unusual_charset_is_refused_before_it_is_used(charset: str) -> None:
    """Some take minutes for a megabyte, some decode to text that no answer can hold, and some raise other errors."""
    begun = time.process_time()
    body = form([("file", "a", b"abc"), ("axes", None, b"\\ud800" * 100_000)])
    answer = send(body, MULTIPART + f"; charset={charset}".encode())
    with pytest.raises(InputError, match=r"charset is .*: send it in UTF-8"):
        judge(answer)
    assert time.process_time() - begun < 2


def test_a_query_that_is_not_utf_8_breaks_nothing() -> None:
    body = form([("file", "a.jpg", b"abc")])
    for query in ("x=\xff", "f_px=\xff", "\xff=1"):
        with pytest.raises(InputError) as caught:
            judge(send(body, MULTIPART, f"/predict/splat?{query}"))
        assert caught.value.code == "invalid_option"
    assert in_process().ask("GET", "/health?\xff").status == 200
    assert in_process().ask("GET", "/health/?\xff").status == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"content_length": b"9" * 5000},
        {"content_length": b"\xb2"},
        {"content_length": b"-1"},
        {"x_request_id": b"\xff" * 1000},
        {"x_request_id": b"../../etc/passwd"},
        {"accept": b"\xff, application/x-npz;q=x"},
        {"accept_encoding": b"gzip;q=" + b"0" * 10_000},
        {"range": b"bytes=" + b"0-0," * 1000},
        {"range": b"bytes=99999999999999999999-"},
        {"host": b"\xff\0"},
    ],
    ids=lambda headers: next(iter(headers)),
)
def test_no_header_makes_the_service_fail(headers: dict[str, bytes]) -> None:
    for path in ("/predict/splat", "/predict"):
        answer = send(form([("file", "a.jpg", b"abc")]), MULTIPART, path, **headers)
        assert answer.status == (413 if headers.get("content_length", b"").isdigit() else 200)
        assert answer.headers.get("x-request-id", "").isascii()


def test_a_client_that_disconnects_while_it_sends_is_counted_as_such(caplog: pytest.LogCaptureFixture) -> None:
    with serving(Gated) as service:
        with socket.create_connection(("127.0.0.1", service.port), timeout=10) as sock:
            sock.sendall(
                b"POST /predict/ply HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n"
                b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
            )
        told, deadline = "", time.monotonic() + 20
        while 'outcome="hung_up"} 1.0' not in told:
            told = requests.get(f"{service.url}/metrics", timeout=10).text
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert "internal_error" not in told
    assert not [record for record in caplog.records if record.exc_info]


# ---- bytes on the wire


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving(Gated, ServiceSettings(request_seconds=20)) as found:
        yield found


def on_the_wire(service: Service, content: bytes) -> bytes:
    """Return all bytes that the server sends, or none if it closes the connection while we send."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as sock:
        try:
            sock.sendall(content)
            sock.shutdown(socket.SHUT_WR)
            received = b""
            while block := sock.recv(65536):
                received += block
        except ConnectionError:
            return b""
    return received


@pytest.mark.parametrize("num", QUANTITIES)
def test_broken_requests_on_the_wire_leave_the_service_healthy(service: Service, num: int) -> None:
    chance, seeds = random.Random(0), http_seeds()
    for number in range(num):
        content = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 5)):
            at = chance.randrange(len(content))
            content[at : at + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
        answer = on_the_wire(service, bytes(content))
        assert not answer.startswith(b"HTTP/1.1 5"), (bytes(content), answer)
        assert b"Traceback" not in answer
        if number % 20 == 0:
            assert requests.get(f"{service.url}/health", timeout=10).json()["status"] == "healthy"
    good = requests.post(f"{service.url}/predict/splat", files={"file": b"abc"}, timeout=10)
    assert (good.status_code, len(good.content)) == (200, 96)
    assert requests.get(f"{service.url}/health", timeout=10).json()["requests"] == 0


# ---- servers behind a URL

ENDLESS = {
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "header": (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
    "line": (b"HTTP/1.1 200 OK\r\nX: ", b"y" * 1000),
    "chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    "extension": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x" * 1000),
    "trailer": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n", b"X: y\r\n"),
}


@pytest.mark.parametrize("part", ENDLESS)
def test_an_endless_answer_of_a_server_is_cut(part: str) -> None:
    head, more = ENDLESS[part]
    server = RawServer()
    server.answer = head + more * (60_000_000 // len(more))
    begun = time.monotonic()
    with pytest.raises(FetchError):
        fetch(server.url, ServiceSettings(fetch_private=True, fetch_seconds=0.3, fetch_megabytes=1))
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    "url", ["http://example.com/\ud800", "http://\ud800.com/", "http://a\0b/", f"http://{'a' * 300}/"]
)
def test_a_url_that_cannot_be_sent_is_a_fetch_error(url: str) -> None:
    with pytest.raises(FetchError, match="the URL cannot be read"):
        fetch(url, CLOSED)

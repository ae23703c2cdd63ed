"""HTTP itself: limits of bodies, forms, temporary files, clients that disconnect."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import InputError, RequestTooLargeError, SlowClientError
from sharp_cog.serving.transfers import Transfers
from sharp_cog.serving.transport import (
    BodyLimit,
    TemporaryFileResponse,
    bounded,
    reading_form,
    takes_gzip,
    unless_gone,
)


def scope(**headers: str) -> Scope:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "POST", "path": "/", "headers": named}


def receiving(*bodies: bytes) -> Receive:
    """Return a `receive` for a body in pieces, after which the client disconnects."""
    messages: list[Message] = [
        {"type": "http.request", "body": body, "more_body": number < len(bodies)}
        for number, body in enumerate(bodies, start=1)
    ]

    async def receive() -> Message:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    return receive


async def connected() -> Message:
    """A `receive` for a client that waits."""
    await asyncio.sleep(20)
    return {"type": "http.disconnect"}


class Sent:
    """A `send` that records the answer."""

    def __init__(self) -> None:
        self.status, self.headers, self.body = 0, Headers(), b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], Headers(raw=message["headers"])
        self.body += message.get("body", b"")


def limited(body: list[bytes], **headers: str) -> tuple[Sent, list[bytes]]:
    """Send a body to an application behind a limit of 1000 bytes; return the answer and the body that it has read."""
    seen: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(await Request(scope, receive).body())
        await PlainTextResponse("fine")(scope, receive, send)

    limit = BodyLimit(app, max_bytes=1000, refuse=lambda error: PlainTextResponse(str(error), 413))
    sent = Sent()
    asyncio.run(limit(scope(**headers), receiving(*body), sent))
    return sent, seen


@pytest.mark.parametrize("length", ["1001", "0001001", "9" * 5000])
def test_a_body_is_refused_by_its_length_before_it_is_read(length: str) -> None:
    sent, seen = limited([b"x"], content_length=length)
    assert (sent.status, seen, sent.headers["connection"]) == (413, [], "close")
    assert b"more than 0.001 MB" in sent.body


@pytest.mark.parametrize("length", ["1000", "0", "", "-5", "many", "\u00b2"])
def test_any_other_length_is_left_to_the_bytes_that_come(length: str) -> None:
    sent, seen = limited([b"x" * 500, b"y" * 500], content_length=length)
    assert (sent.status, len(seen[0])) == (200, 1000)


def test_a_body_without_length_is_refused_as_soon_as_it_is_too_large() -> None:
    with pytest.raises(RequestTooLargeError):
        limited([b"x" * 500, b"y" * 501])


def answered(path: Path, send: Send, *, receive: Receive = connected, seconds: float = 5, **settings: float) -> str:
    """Send a file, and return the outcome."""
    ends: list[str] = []

    async def main() -> None:
        transfers = Transfers(ServiceSettings(**settings))  # type: ignore[arg-type]
        answer = TemporaryFileResponse(path, seconds=seconds, transfers=transfers, on_end=ends.append)
        await answer(scope(), receive, send)
        assert transfers.num_answers == 0

    asyncio.run(main())
    (end,) = ends
    return end


def test_a_temporary_file_is_sent_and_deleted(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    path.write_bytes(b"splat")
    sent = Sent()
    assert answered(path, sent) == "ok"
    assert (sent.status, sent.body) == (200, b"splat")
    assert not path.exists()


@pytest.mark.parametrize("limit", [{"seconds": 0.05}, {"stall_seconds": 0.05}])
def test_a_temporary_file_is_deleted_though_the_client_reads_too_slowly(tmp_path: Path, limit: dict[str, Any]) -> None:
    path = tmp_path / "a.ply"
    path.write_bytes(b"splat")

    async def slow(message: Message) -> None:
        await asyncio.sleep(20)

    assert answered(path, slow, **limit) == "too_slow"
    assert not path.exists()


def test_a_client_that_disconnects_during_its_answer_is_told_from_one_that_gets_all(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    path.write_bytes(bytes(1_000_000))

    async def slow(message: Message) -> None:
        await asyncio.sleep(0.01)

    assert answered(path, slow, receive=receiving()) == "hung_up"


def read_bounded(receive: Receive, **settings: float) -> bytes:
    """Read a body within the bounds of the settings."""

    async def main() -> bytes:
        transfers = Transfers(ServiceSettings(**settings))  # type: ignore[arg-type]
        async with bounded(Request(scope(content_length="1000"), receive), transfers) as request:
            assert transfers.num_uploads == 1
            body = await request.body()
            assert transfers.num_uploads == 0, "the place is free once the body has come"
            return body

    return asyncio.run(main())


def test_a_body_comes_whole_through_its_bounds() -> None:
    assert read_bounded(receiving(b"x" * 600, b"y" * 400)) == b"x" * 600 + b"y" * 400


def test_a_body_that_stops_coming_is_an_error() -> None:
    async def stalled() -> Message:
        await asyncio.sleep(20)
        return {}

    with pytest.raises(SlowClientError, match=r"the upload came at less than 10 kB a second for 0.05 s"):
        read_bounded(stalled, stall_seconds=0.05)


def form_of(body: bytes, content_type: str) -> dict[str, Any]:
    async def read() -> dict[str, Any]:
        async with reading_form(Request(scope(content_type=content_type), receiving(body))) as form:
            return dict(form)

    return asyncio.run(read())


def test_forms_are_read_and_other_bodies_have_no_fields() -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--b--\r\n'
    assert form_of(part, "multipart/form-data; boundary=b") == {"a": "1"}
    assert form_of(b'{"a": 1}', "application/json") == {}


def test_a_form_in_an_unusual_charset_is_refused() -> None:
    with pytest.raises(InputError, match="the form's charset is 'utf-16': send it in UTF-8"):
        form_of(b"", "multipart/form-data; boundary=b; charset=UTF-16")


def waiting(receive: Receive, work: Callable[[], Coroutine[Any, Any, int]]) -> int | None:
    return asyncio.run(unless_gone(Request(scope(), receive), work()))


def test_work_ends_with_its_result_while_the_client_waits() -> None:
    async def work() -> int:
        return 3

    assert waiting(connected, work) == 3


def test_work_is_cancelled_if_the_client_disconnects() -> None:
    ends: list[str] = []

    async def work() -> int:
        try:
            await asyncio.sleep(20)
        finally:
            ends.append("cancelled")
        return 3

    assert waiting(receiving(), work) is None
    assert ends == ["cancelled"]


@pytest.mark.parametrize(
    ("header", "takes"),
    [
        ("gzip", True),
        ("br, GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip; q=0.00 , br", False),
        ("br", False),
        ("", False),
        ("*", False),
    ],
)
def test_gzip_is_used_if_the_client_accepts_it(header: str, takes: bool) -> None:
    assert takes_gzip(Headers({"Accept-Encoding": header})) == takes

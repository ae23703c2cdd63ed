"""HTTP itself: limits of bodies, forms, temporary files, clients that disconnect."""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from fastapi.responses import FileResponse, Response
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sharp_cog.errors import InputError, RequestTooLargeError, SharpError, SlowClientError
from sharp_cog.files.atomic import cannot_write
from sharp_cog.serving.access import Gate
from sharp_cog.serving.transfers import Transfers
from sharp_cog.text import quoted

_T = TypeVar("_T")

ABORT = "sharp_cog.abort"
"""Name of the ASGI extension by which an answer cuts its connection; the value is a function."""
_CHECKED_BYTES = 1 << 22
"""Bytes of a body without declared length between two looks at the free space."""
_CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1")
"""Charsets of forms. Python has others that take minutes for a megabyte, or decode to text that cannot be sent back."""


class BodyLimit:
    """Middleware that refuses bodies that are too large.

    If the Content-Length is too large, `refuse` answers before the body is read. Otherwise the code that reads the body
    gets a `RequestTooLargeError` as soon as the limit is exceeded.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, refuse: Callable[[Exception], Response]) -> None:
        """Wrap an application.

        Args:
            app: The application.
            max_bytes: Largest body.
            refuse: Makes the answer to a body that is too large.
        """
        self._app = app
        self._max_bytes = max_bytes
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        error = RequestTooLargeError(
            f"the request has more than {self._max_bytes / 1e6:g} MB: send a smaller image or depth map"
        )
        length = _declared_bytes(Headers(scope=scope))
        if length is not None and length > self._max_bytes:
            await send_unread(self._refuse(error), scope, receive, send)
            return
        # A body in chunks declares no length, so its bytes are counted as they come.
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise error
            return message

        await self._app(scope, counted, send)


class Guard:
    """Middleware that refuses requests without access before their body is read.

    It stands below the middleware of CORS, so that pages of allowed origins can read its refusals.
    """

    def __init__(self, app: ASGIApp, *, gate: Gate, refuse: Callable[[Exception], Response]) -> None:
        self._app = app
        self._gate = gate
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "http":
            try:
                self._gate.check(
                    method=scope["method"],
                    path=scope["path"].removeprefix(scope.get("root_path", "")),
                    headers=Headers(scope=scope),
                    address=(scope.get("client") or ("",))[0],
                )
            except SharpError as error:
                await send_unread(self._refuse(error), scope, receive, send)
                return
        await self._app(scope, receive, send)


async def send_unread(refusal: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Send the refusal of a request whose body stays unread."""
    if scope["method"] not in ("GET", "HEAD"):
        refusal.headers["Connection"] = "close"
    await refusal(scope, receive, send)


def _declared_bytes(headers: Headers) -> int | None:
    """Return the Content-Length, or a number beyond every limit for one that is too long; None if it says nothing."""
    digits = headers.get("content-length", "").strip()
    if not digits.isascii() or not digits.isdigit():
        return None
    # Python refuses, or takes long for, a number of thousands of digits.
    return int(digits) if len(digits.lstrip("0")) < 20 else sys.maxsize


@asynccontextmanager
async def bounded(request: Request, transfers: Transfers) -> AsyncIterator[Request]:
    """Reserve a place and disk for the body of a request, and let the client send it no slower than is allowed.

    Yields:
        The request, whose body comes within these bounds. It has not been read yet.

    Raises:
        BusyError: There is no place, or no disk because of other requests.
        NoSpaceError: There is no disk.
        SlowClientError: The client sends too slowly. It is raised where the body is read.
    """
    declared, receive, is_whole, num_unchecked = _declared_bytes(request.headers), request.receive, False, 0

    async def paced() -> Message:
        nonlocal is_whole, num_unchecked
        if is_whole:  # Nothing follows but the end of the connection.
            return await receive()
        message = await upload.wait(receive(), _body_bytes)
        num_unchecked += _body_bytes(message)
        if not message.get("more_body", False):
            is_whole = True
            transfers.arrived(upload)
        elif declared is None and num_unchecked >= _CHECKED_BYTES:
            num_unchecked = 0
            transfers.check_space()
        return message

    async with transfers.reserved(declared or 0) as upload:
        yield Request(request.scope, paced)


def _body_bytes(message: Message) -> int:
    return len(message.get("body", b""))


class TemporaryFileResponse(FileResponse):
    """Sends a file once, no slower than is allowed, and deletes it whatever happens."""

    def __init__(
        self, path: Path, *, seconds: float, transfers: Transfers, on_end: Callable[[str], object], **rest: Any
    ) -> None:
        """Prepare the answer.

        Args:
            path: The file.
            seconds: Time limit, for a client that is always just fast enough.
            transfers: Transfers of the service, which this one is added to.
            on_end: Called with the outcome: `ok`, `hung_up` for a client that has disconnected, or `too_slow`.
            rest: Arguments of `FileResponse`.
        """
        super().__init__(path, **rest)
        self._seconds = seconds
        self._transfers = transfers
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file."""
        try:
            await send_paced(super().__call__, scope, receive, send, self._transfers, self._seconds, self._on_end)
        finally:
            Path(self.path).unlink(missing_ok=True)


async def send_paced(
    respond: ASGIApp,
    scope: Scope,
    receive: Receive,
    send: Send,
    transfers: Transfers,
    seconds: float,
    on_end: Callable[[str], object],
) -> None:
    """Send an answer no slower than is allowed, and cut the connection of a client that reads it too slowly.

    Args:
        respond: Sends the answer.
        scope: Scope of the request.
        receive: Receives from the client.
        send: Sends to the client.
        transfers: Transfers of the service, which this one is added to.
        seconds: Time limit, for a client that is always just fast enough.
        on_end: Called with the outcome: `ok`, `hung_up` for a client that has disconnected, or `too_slow`.
    """
    outcome = "hung_up"

    async def paced(message: Message) -> None:
        nonlocal outcome
        num_bytes = _body_bytes(message)
        await answer.wait(send(message), lambda _: num_bytes)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            outcome = "ok"
            # At once, since the client may ask for the metrics before the file is closed.
            on_end(outcome)

    try:
        with transfers.answering() as answer:
            async with asyncio.timeout(seconds):
                await respond(scope, receive, paced)
    except (SlowClientError, TimeoutError):
        outcome = SlowClientError.code
        # An exception would be logged as a failure of the service, and an answer that ends early as one of its own.
        abort = scope.get("extensions", {}).get(ABORT)
        if abort is not None:
            abort()
    finally:
        if outcome != "ok":
            on_end(outcome)


@asynccontextmanager
async def reading_form(request: Request) -> AsyncIterator[FormData]:
    """Read the fields of a form, and close its files at the end of the block. A body of another kind has no fields.

    Raises:
        HTTPException: The form cannot be parsed (400).
        InputError: The form cannot be parsed, or has an unusual charset.
        ClientDisconnect: The client disconnected before it had sent the whole form.
        OutputError: A large file of the form cannot be written to disk.
    """
    _, parameters = parse_options_header(request.headers.get("content-type"))
    # Starlette looks the charset up among all codecs of Python, and decodes the fields with it.
    charset = parameters.get(b"charset", b"utf-8").decode("latin-1").lower()
    if charset not in _CHARSETS:
        raise InputError(f"the form's charset is {quoted(charset)}: send it in UTF-8")
    try:
        form = await request.form(max_files=2, max_fields=64)
    except FormParserError as error:
        # Starlette translates the errors of its own parser, but not those of python_multipart.
        raise InputError("the form cannot be read: send multipart/form-data") from error
    except OSError as error:
        # Starlette spools files above 1 MB to the disk, which may be full.
        raise cannot_write(Path(tempfile.gettempdir()) / "upload", error) from error
    try:
        yield form
    finally:
        await form.close()


async def unless_gone(request: Request, work: Awaitable[_T]) -> _T | None:
    """Wait for the work, and cancel it if the client disconnects. The body must have been read.

    Returns:
        The result of the work; None if the client has disconnected.
    """

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    # Servers do not cancel a request whose client has gone; they only say so to the next `receive`.
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        for task in (working, watching):
            task.cancel()
        # The work uses the form's files until it has ended.
        await asyncio.gather(working, watching, return_exceptions=True)


def takes_gzip(headers: Headers) -> bool:
    """Return whether `Accept-Encoding` names gzip with a weight above 0."""
    for part in headers.get("accept-encoding", "").lower().split(","):
        coding, _, weight = part.partition(";")
        if coding.strip() == "gzip":
            return not re.fullmatch(r"\s*q=0(\.0*)?\s*", weight)
    return False

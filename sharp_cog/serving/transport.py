"""HTTP itself: limits of bodies, forms, temporary files, clients that disconnect."""

from __future__ import annotations

import asyncio
import re
import tempfile
import zlib
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

from sharp_cog.errors import InputError, RequestTooLargeError, SharpError
from sharp_cog.files.atomic import cannot_write, open_atomically
from sharp_cog.serving.access import Gate
from sharp_cog.text import quoted

_T = TypeVar("_T")

_CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1")
"""Charsets of forms. Python has others that take minutes for a megabyte, or decode to text that cannot be sent back."""


class BodyLimit:
    """Middleware that refuses bodies that are too large.

    If the Content-Length is too large, `refuse` answers before the body is read. Otherwise the code that reads the body
    gets a `RequestTooLargeError` as soon as the limit is exceeded.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, refuse: Callable[[Exception], Response]) -> None:
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
        length = Headers(scope=scope).get("content-length", "").strip()
        # Not `int` at once: Python refuses, or takes long for, a number of thousands of digits.
        if length.isascii() and length.isdigit() and _is_above(length, self._max_bytes):
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


def _is_above(digits: str, limit: int) -> bool:
    digits = digits.lstrip("0")
    return len(digits) > len(str(limit)) or int(digits or "0") > limit


class TemporaryFileResponse(FileResponse):
    """Sends a file once, in bounded time, and deletes it whatever happens."""

    def __init__(self, path: Path, *, seconds: float, **rest: Any) -> None:
        super().__init__(path, **rest)
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file."""
        try:
            # A client that reads a byte at a time would keep the file on disk for ever.
            async with asyncio.timeout(self._seconds):
                await super().__call__(scope, receive, send)
        finally:
            Path(self.path).unlink(missing_ok=True)


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


def gzipped(path: Path) -> Path:
    """Compress a file, fast rather than small, and delete the original.

    Returns:
        The compressed file, beside the original.

    Raises:
        OutputError: The compressed file cannot be written.
    """
    target = path.with_name(f"{path.name}.gz")
    # 31 is 15, the largest window, plus 16 for gzip's header.
    pack = zlib.compressobj(level=1, wbits=31)
    try:
        with open_atomically(target) as packed, path.open("rb") as plain:
            while chunk := plain.read(1 << 20):
                packed.write(pack.compress(chunk))
            packed.write(pack.flush())
    finally:
        path.unlink(missing_ok=True)
    return target

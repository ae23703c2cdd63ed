"""What the HTTP service needs of HTTP itself: bodies that end, files that pass, clients that go."""

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

from sharp_cog.errors import InputError, RequestTooLargeError
from sharp_cog.files.atomic import cannot_write, open_atomically
from sharp_cog.text import quoted

_T = TypeVar("_T")

_CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii", "iso-8859-1")
"""Of forms. Python knows others that take minutes for a megabyte, or make texts of it that cannot be sent back."""


class BodyLimit:
    """Refuses bodies that are too large: by their length before they are read, else as soon as they are.

    A middleware. What is refused by its length is answered by `refuse`; else `RequestTooLargeError` is raised in who
    reads the body.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, refuse: Callable[[Exception], Response]) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        error = RequestTooLargeError(
            f"the request has more than {self._max_bytes / 1e6:g} MB: send a smaller picture or depth map"
        )
        length = Headers(scope=scope).get("content-length", "").strip()
        # Longer numbers than the limit's are larger ones; no need to read thousands of digits.
        if length.isascii() and length.isdigit() and _is_above(length, self._max_bytes):
            refusal = self._refuse(error)
            refusal.headers["Connection"] = "close"  # The body stays unread.
            await refusal(scope, receive, send)
            return
        num_bytes = 0

        async def counted() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise error
            return message

        await self._app(scope, counted, send)


def _is_above(digits: str, limit: int) -> bool:
    digits = digits.lstrip("0")
    return len(digits) > len(str(limit)) or int(digits or "0") > limit


class TemporaryFileResponse(FileResponse):
    """A file that is sent once, in bounded time, and deleted whatever happens."""

    def __init__(self, path: Path, *, seconds: float, **rest: Any) -> None:
        super().__init__(path, **rest)
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the file."""
        try:
            async with asyncio.timeout(self._seconds):
                await super().__call__(scope, receive, send)
        finally:
            Path(self.path).unlink(missing_ok=True)


@asynccontextmanager
async def reading_form(request: Request) -> AsyncIterator[FormData]:
    """The fields of a form, and none where the body is no form; its files are closed behind the block.

    Raises:
        HTTPException: It cannot be read (400).
        InputError: The same.
        ClientDisconnect: The client hung up before it had sent all.
        OutputError: The disk does not take a large file of it.
    """
    _, parameters = parse_options_header(request.headers.get("content-type"))
    charset = parameters.get(b"charset", b"utf-8").decode("latin-1").lower()
    if charset not in _CHARSETS:
        raise InputError(f"the form's charset is {quoted(charset)}: send it in UTF-8")
    try:
        form = await request.form(max_files=2, max_fields=64)
    except FormParserError as error:
        raise InputError("the form cannot be read: send multipart/form-data") from error
    except OSError as error:
        raise cannot_write(Path(tempfile.gettempdir()) / "upload", error) from error
    try:
        yield form
    finally:
        await form.close()


async def unless_gone(request: Request, work: Awaitable[_T]) -> _T | None:
    """Waits for the work, and cancels it once the client has hung up; None then. The body must have been read."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


def takes_gzip(headers: Headers) -> bool:
    """Whether `Accept-Encoding` names gzip, and not with a weight of 0."""
    for part in headers.get("accept-encoding", "").lower().split(","):
        coding, _, weight = part.partition(";")
        if coding.strip() == "gzip":
            return not re.fullmatch(r"\s*q=0(\.0*)?\s*", weight)
    return False


def gzipped(path: Path) -> Path:
    """The file compressed, fast rather than small; the plain one is deleted.

    Returns:
        The new file, beside the old one.

    Raises:
        OutputError: It cannot be written.
    """
    target = path.with_name(f"{path.name}.gz")
    pack = zlib.compressobj(level=1, wbits=31)
    try:
        with open_atomically(target) as packed, path.open("rb") as plain:
            while chunk := plain.read(1 << 20):
                packed.write(pack.compress(chunk))
            packed.write(pack.flush())
    finally:
        path.unlink(missing_ok=True)
    return target

"""Bodies of requests for predictions: forms, JSON, and images as they are. All of them become the same fields."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.requests import Request

from sharp_cog.errors import DepthError, ImageError, InputError, RequestTooLargeError
from sharp_cog.files.atomic import cannot_write
from sharp_cog.serving import inputs
from sharp_cog.serving.openapi import JSON
from sharp_cog.serving.transport import reading_form
from sharp_cog.text import plain, quoted

MAX_JSON_BYTES = 100_000_000
"""Largest body of JSON, which is parsed in memory; a form of that size stays on the disk."""
MULTIPART = "multipart/form-data"
FORMS = (MULTIPART, "application/x-www-form-urlencoded")
RAW = ("application/octet-stream", "binary/octet-stream", "")
"""Media types of a body that is the image, besides those of images: clients send them for a file of unknown kind."""
_SPOOLED_BYTES = 1 << 20
"""Size from which a file lies on the disk, as for the files of a form."""
_URLS = {"image_url": "file", "depth_url": "depth"}
"""Fields with an address, and the file that each stands for."""
_FILES = {"file": "file", "depth": "depth", **dict.fromkeys(inputs.IMAGE_NAMES, "file")}
"""Fields with a file, and the name under which we have it."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
"""Names that a person may have given a field, even if it is unknown."""
_PARSER = ThreadPoolExecutor(1, thread_name_prefix="json")
"""The only thread that parses JSON, since each body is in memory several times meanwhile."""


@dataclass(kw_only=True, slots=True)
class Fields:
    """Fields of a request, without the empty ones.

    Attributes:
        files: Files, by `file` for the image and `depth` for its depth map.
        urls: Addresses of files, by `image_url` and `depth_url`.
        options: All other fields: text, or values of JSON.
        names: Names by which the request calls its image and its depth map.
    """

    files: dict[str, UploadFile] = field(default_factory=dict)
    urls: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


@asynccontextmanager
async def reading_fields(request: Request) -> AsyncIterator[Fields]:
    """Read the fields of a request for a prediction, and close its files at the end of the block.

    A form has them as parts, and JSON as members of an object, in which files are base64. Any other body is the image.
    The query adds options and addresses to each of them.

    Yields:
        The fields, of which the names of options have not been checked.

    Raises:
        HTTPException: The form cannot be parsed (400).
        InputError: The body or one of its fields cannot be read, or a field is given twice.
        RequestTooLargeError: The body is JSON of more than `MAX_JSON_BYTES`.
        ClientDisconnect: The client disconnected before it had sent the whole body.
        OutputError: A large file cannot be written to disk.
    """
    media_type = parse_options_header(request.headers.get("content-type"))[0].decode("latin-1").lower()
    items: Iterable[tuple[str, Any]]
    async with AsyncExitStack() as stack:
        if media_type in FORMS:
            form = await stack.enter_async_context(reading_form(request))
            items = form.multi_items()
            if media_type != MULTIPART:
                _check_names(name for name, _ in items)
        elif media_type == JSON:
            body = await _received(request, stack, max_bytes=MAX_JSON_BYTES)
            items = await asyncio.get_running_loop().run_in_executor(_PARSER, _parse, body.file)
        elif media_type.startswith("image/") or media_type in RAW:
            items = [("file", await _received(request, stack))]
        else:
            raise InputError(
                f"the body is of type {quoted(media_type)}: send a form (multipart/form-data), JSON, or the image with "
                "its own type, such as image/jpeg"
            )
        fields = Fields()
        for name, value in (*request.query_params.multi_items(), *items):
            if isinstance(value, UploadFile):
                stack.callback(value.file.close)
            _add(fields, name, value)
        yield fields


def _add(fields: Fields, name: str, value: Any) -> None:
    """Add a field of the request, unless it is empty.

    Raises:
        InputError: The field is given twice, is unknown, or has a value of another kind.
    """
    is_file = isinstance(value, UploadFile)
    # A browser sends an empty field if the user has not touched it, and programs send null.
    if not (value.filename or value.size) if is_file else value is None or value == "":
        return
    if name in fields.options or name in fields.urls or name in fields.names.values():
        raise InputError(f"{plain(name)} is given twice: give it once")
    if name in _FILES or (name in _URLS and (is_file or inputs.is_data_uri(value))):
        ours = _FILES.get(name) or _URLS[name]
        if ours in fields.files:
            error = ImageError if ours == "file" else DepthError
            raise error(f"{fields.names[ours]} and {name} are both given, and are the same: give one")
        if not is_file:
            # Under these names a text is a file that the client has forgotten to open.
            if name in ("file", "depth"):
                raise InputError(f"{name} is given as text: give it as a file")
            value = _file_of(inputs.decode_base64(name, value))
        fields.files[ours], fields.names[ours] = value, name
    elif name in _URLS:
        if not isinstance(value, str):
            raise InputError(f"{name} is of type {type(value).__name__}: give an http or https address")
        fields.urls[name] = value
    elif not is_file:
        fields.options[name] = value
    elif name in inputs.OPTION_NAMES:
        raise InputError(f"{name} is given as a file: give it as text")
    else:
        raise InputError(f"unknown field {plain(name) or quoted(name)}: send the image as file, its depth map as depth")


def _check_names(names: Iterable[str]) -> None:
    """Check the names of a form without files, since clients also send images as such a form if nobody stops them.

    Raises:
        InputError: A name is not one that a person gives.
    """
    for name in names:
        if not _NAME.fullmatch(name):
            raise InputError(
                "the body is no form of names and values: send the image as a file of a form (curl -F "
                "file=@photo.jpg), or with its own Content-Type, such as image/jpeg"
            )


async def _received(request: Request, stack: AsyncExitStack, *, max_bytes: int | None = None) -> UploadFile:
    """Return the body as a file, which the stack closes; a large one lies on the disk.

    Raises:
        RequestTooLargeError: The body is larger than `max_bytes`.
        ClientDisconnect: The client disconnected before it had sent the whole body.
        OutputError: The file cannot be written.
    """
    file = UploadFile(_new_file(), size=0)
    stack.callback(file.file.close)
    async for chunk in request.stream():
        if max_bytes is not None and (file.size or 0) + len(chunk) > max_bytes:
            raise RequestTooLargeError(
                f"the request is JSON of more than {max_bytes / 1e6:g} MB: send a form (multipart/form-data)"
            )
        try:
            await file.write(chunk)
        except OSError as error:
            raise cannot_write(Path(tempfile.gettempdir()) / "upload", error) from error
    return file


def _parse(body: BinaryIO) -> list[tuple[str, Any]]:
    """Return the members of a JSON object, with files in place of base64.

    Raises:
        InputError: The body is no JSON object, or a member is not base64.
        OutputError: A file cannot be written.
    """
    body.seek(0)
    try:
        values = orjson.loads(body.read())
    except ValueError as error:
        raise InputError(f"the body is not JSON ({plain(error)}): send an object with image or image_url") from None
    if not isinstance(values, dict):
        raise InputError(f"the body is of type {type(values).__name__}: send an object with image or image_url")
    is_file = {name: name in _FILES or (name in _URLS and inputs.is_data_uri(value)) for name, value in values.items()}
    return [
        (name, _file_of(inputs.decode_base64(name, value)) if is_file[name] and value not in (None, "") else value)
        for name, value in values.items()
    ]


def _file_of(content: bytes) -> UploadFile:
    file = _new_file()
    try:
        file.write(content)
    except OSError as error:
        raise cannot_write(Path(tempfile.gettempdir()) / "upload", error) from error
    return UploadFile(file, size=len(content))


def _new_file() -> BinaryIO:
    return cast(BinaryIO, tempfile.SpooledTemporaryFile(max_size=_SPOOLED_BYTES))

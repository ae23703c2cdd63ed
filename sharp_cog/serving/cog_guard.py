"""The guard in front of Cog's HTTP server: `scripts/serve`, and `python -m sharp_cog.serving.cog_server` in the image.

Coglet, Cog's server, checks neither names nor origins, fetches every URL, and sends to every webhook. The guard has the
same protocol. It refuses what could do harm before coglet sees it, fetches URLs itself, and lets predictions wait for
each other for a moment.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import BusyError, DeadlineError, ForbiddenError, InputError, SharpError
from sharp_cog.files.atomic import cannot_write
from sharp_cog.serving.access import KEY_HEADERS, Access, Gate, RateLimit
from sharp_cog.serving.coglet import ID, SLOT, Answer, Asked, Coglet, Output, discard, input_name, object_of, store
from sharp_cog.serving.fetch import post
from sharp_cog.serving.fetching import Fetching
from sharp_cog.serving.refusals import error_body, headers_of, status_of
from sharp_cog.serving.replicate_api import ReplicateApi
from sharp_cog.serving.transfers import Transfers
from sharp_cog.serving.transport import BodyLimit, Guard, bounded, send_paced, unless_gone
from sharp_cog.text import plain, quoted, read_json

_LOG = logging.getLogger(__name__)

OPEN_PATHS = ("/", "/health-check", "/openapi.json")
"""Paths that need no key."""
NUM_WEBHOOKS = 4
"""Number of webhooks that are sent at once."""
HUNG_UP = 499
"""Status for a client that has disconnected; nobody receives it."""

_WITH_KEY = ("webhook", "output_file_prefix")
"""Fields of a prediction with which a caller lets the server send requests."""
_PASSED_ON = ("input", "context")
"""Fields of a prediction that coglet gets as they are."""
_EVENTS = ("start", "output", "logs", "completed")
"""Events that a webhook may ask for."""
_WEB = re.compile(r"\s*https?:", re.IGNORECASE)
_BASE64_BYTES = 3 << 18
"""Bytes of an output that are encoded at a time; a multiple of 3, so that the parts join into one text."""


class CogGuard:
    """Cog's protocol, guarded.

    Attributes:
        app: The ASGI application for clients.
        inside_app: The ASGI application for coglet.
        inside: Address of the latter; its path is secret.
    """

    def __init__(
        self,
        connect: Callable[[str], Coglet],
        settings: ServiceSettings,
        *,
        folder: Path,
        inside: str,
        file_fields: Collection[str],
        stop: Callable[[], None],
    ) -> None:
        """Create the guard.

        Args:
            connect: Creates the client of coglet, given the address at which coglet reaches the guard.
            settings: Settings of the service.
            folder: Folder for bodies, fetched inputs and outputs.
            inside: Address at which coglet reaches this process.
            file_fields: Names of the inputs that are files.
            stop: Ends this process after the answer.
        """
        secret = f"/-/{secrets.token_hex(16)}"
        self.inside = f"{inside}{secret}"
        self._settings = settings
        self._folder = folder
        self._file_fields = frozenset(file_fields)
        self._stop = stop
        self._reading = asyncio.Lock()
        self._transfers, self._fetching = Transfers(settings), Fetching(settings)
        self._uploads = set[asyncio.Timeout]()
        self._jobs = set[asyncio.Task[Answer]]()
        self._webhooks = ThreadPoolExecutor(NUM_WEBHOOKS, thread_name_prefix="webhook")
        self._reports: dict[str, asyncio.Task[None]] = {}
        self.coglet = connect(self.inside)
        self._replicate = ReplicateApi(self, settings, folder)

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            watching = asyncio.create_task(self.coglet.watch())
            yield
            watching.cancel()
            self._fetching.close()
            await self.coglet.close()

        self.app = Starlette(
            routes=[
                Route("/", self._forward),
                Route("/openapi.json", self._forward),
                Route("/health-check", self._health),
                Route("/predictions", self._post, methods=["POST"]),
                Route("/predictions/{prediction_id}", self._put, methods=["PUT"]),
                Route("/predictions/{prediction_id}/cancel", self._cancel, methods=["POST"]),
                Route("/shutdown", self._shut_down, methods=["POST"]),
                *self._replicate.routes,
            ],
            middleware=self._middleware(),
            exception_handlers={
                **dict.fromkeys((SharpError, Exception), _on_error),
                HTTPException: _on_http_error,  # type: ignore[dict-item]  # Starlette's types know no subclass.
            },
            lifespan=lifespan,
        )
        self.app.router.redirect_slashes = False
        # As `sharp_cog.serving.server.Server` needs it.
        state = self.app.state
        state.stop, state.idle, state.refused = self.stop, self.idle, lambda reason: None
        state.has_failed, state.is_closed = lambda: False, True
        # Coglet has neither key nor origin, but its own address, whose path is secret.
        self.inside_app = Starlette(
            routes=[
                Route(f"{secret}/inputs/{{token}}/{{name}}", self._give_input),
                Route(f"{secret}/outputs/{{name:path}}", self._take_output, methods=["PUT"]),
                Route(f"{secret}/events", self._take_event, methods=["POST"]),
            ]
        )

    def _middleware(self) -> list[Middleware]:
        settings = self._settings
        gate = Gate(Access.from_settings(settings, open_paths=OPEN_PATHS), RateLimit(settings.rate_limit))
        cors = Middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=("GET", "HEAD", "POST", "PUT"),
            allow_headers=(*KEY_HEADERS, "Prefer"),
            expose_headers=("Retry-After",),
            # A site on the internet may be allowed to use a service on this machine, which browsers ask for separately.
            allow_private_network=True,
        )
        return [
            *([cors] if settings.allowed_origins else []),
            Middleware(Guard, gate=gate, refuse=refusal),
            Middleware(BodyLimit, max_bytes=int(settings.max_body_megabytes * 1e6), refuse=refusal),
        ]

    def stop(self) -> None:
        """Take no more predictions, and drop what has not been received; the running prediction ends."""
        self.coglet.is_stopping = True
        for upload in self._uploads:
            upload.reschedule(asyncio.get_running_loop().time())

    async def idle(self) -> None:
        """Wait until the running prediction has ended."""
        while self.coglet.running is not None:
            await asyncio.sleep(0.02)

    @property
    def has_key(self) -> bool:
        """Whether every caller must have a key, and so may let the server send requests."""
        return bool(self._settings.api_keys)

    async def _forward(self, request: Request) -> Response:
        answer = await self.coglet.get(request.url.path)
        return Response(answer.content, answer.status_code, media_type="application/json")

    async def _health(self, request: Request) -> Response:
        return JSONResponse(await self.coglet.health())

    async def _post(self, request: Request) -> Response:
        return await self._predict(request, None)

    async def _put(self, request: Request) -> Response:
        return await self._predict(request, request.path_params["prediction_id"])

    async def _predict(self, request: Request, prediction_id: str | None) -> Response:
        check_id(prediction_id)
        await self.coglet.check()
        try:
            asked = await self.receive(request, prediction_id)
        except ClientDisconnect:
            return Response(status_code=HUNG_UP)
        if asked.id == self.coglet.running:
            asked.body.unlink()
            return JSONResponse({"id": asked.id, "status": "processing"}, 202)
        has_begun = asyncio.Event()
        job = self.start(asked, wait_s=self._settings.cog_wait_seconds, has_begun=has_begun)
        if "respond-async" in request.headers.get("prefer", ""):
            return await self._accepted(asked, job, has_begun)
        try:
            answer = await unless_gone(request, job)
        except BusyError as error:
            return refusal(error, 409 if error.reason == SLOT else None)
        return Response(status_code=HUNG_UP) if answer is None else self.respond(answer)

    async def _accepted(self, asked: Asked, job: asyncio.Task[Answer], has_begun: asyncio.Event) -> Response:
        """Answer 202 as soon as coglet has accepted the prediction, which goes on."""
        beginning = asyncio.create_task(has_begun.wait())
        await asyncio.wait({job, beginning}, return_when=asyncio.FIRST_COMPLETED)
        beginning.cancel()
        if job.done() and (job.exception() is not None or job.result().status != 200):
            try:
                return self.respond(job.result())
            except BusyError as error:
                return refusal(error, 409 if error.reason == SLOT else None)
        job.add_done_callback(_discard_answer)
        return JSONResponse({"id": asked.id, "status": "starting"}, 202)

    async def _cancel(self, request: Request) -> Response:
        prediction_id = request.path_params["prediction_id"]
        check_id(prediction_id)
        is_cancelled = await self.coglet.cancel(prediction_id)
        return JSONResponse({}, 200 if is_cancelled else 404)

    async def _shut_down(self, request: Request) -> Response:
        if not self.has_key:
            raise ForbiddenError("without a key, /shutdown is off: set SHARP_API_KEY, or end the process by a signal")
        self._stop()
        return JSONResponse({})

    async def receive(self, request: Request, prediction_id: str | None) -> Asked:
        """Receive the body of a request for a prediction, and check it.

        Raises:
            InputError: The body is no prediction.
            ForbiddenError: The prediction needs a key.
            DeadlineError: The body takes too long.
            BusyError: Too many bodies are being received, or the guard is stopping.
            ClientDisconnect: The client disconnected before it had sent the whole body.
        """
        # A page of another site can send any text without asking the server first, but no JSON.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise _UnsupportedError("the request is not application/json: set Content-Type")
        received, body = (self._folder / f"{secrets.token_hex(16)}.{kind}" for kind in ("received", "body"))
        try:
            async with self.uploading(request) as bounded_request:
                await store(received, bounded_request.stream())
            # One body at a time in memory, of which the parser makes several times its size.
            async with self._reading:
                return await asyncio.to_thread(self._read, received, body, prediction_id)
        except BaseException:
            body.unlink(missing_ok=True)
            raise
        finally:
            received.unlink(missing_ok=True)

    @asynccontextmanager
    async def uploading(self, request: Request) -> AsyncIterator[Request]:
        """Let a client send a body within the bounds of the service, and drop it if the guard stops.

        Yields:
            The request, whose body comes within these bounds.

        Raises:
            SlowClientError: The client sends too slowly.
            NoSpaceError: There is no disk.
            DeadlineError: The client takes too long.
            BusyError: Too many bodies are being received, or the guard is stopping.
        """
        seconds = self._settings.request_seconds
        limit = asyncio.timeout(seconds)
        self._uploads.add(limit)
        try:
            async with limit, bounded(request, self._transfers) as bounded_request:
                yield bounded_request
        except TimeoutError:
            if self.coglet.is_stopping:
                raise BusyError("the server is stopping: try again later", retry_after_s=5) from None
            raise DeadlineError(f"the request took longer than {seconds:g} s: try again") from None
        finally:
            self._uploads.discard(limit)

    def _read(self, received: Path, body: Path, prediction_id: str | None) -> Asked:
        """Read a prediction, and write what coglet gets of it."""
        try:
            values = read_json(received.read_bytes())
        except ValueError as error:  # This includes text that is not UTF-8.
            raise _MalformedError(f"the request is not JSON: {plain(error)}") from None
        if not isinstance(values, dict):
            raise InputError(f"the request is {quoted(values)}: send an object with an input")
        for name in _WITH_KEY:
            if values.get(name) is not None and not self.has_key:
                raise ForbiddenError(f"without a key, {name} is off: set SHARP_API_KEY at the server, or leave it out")
        named = values.get("id")
        if named is not None and prediction_id is not None and named != prediction_id:
            raise InputError(f"id is {quoted(named)}, but the address ends in {quoted(prediction_id)}: leave id out")
        check_id(named)
        webhook, events = _webhook_of(values)
        found_id = prediction_id or named or f"pred_{secrets.token_hex(8)}"
        passed: dict[str, Any] = {name: values[name] for name in _PASSED_ON if name in values}
        fetched, echo = {}, {}
        if isinstance(values.get("input"), dict):
            given = dict(values["input"])
            for name in self._file_fields & given.keys():
                if not (isinstance(given[name], str) and _WEB.match(given[name])):
                    continue
                uploaded = self._replicate.file_of(given[name])
                if uploaded is not None:
                    given[name] = "/".join((self.inside, "inputs", *uploaded))
                else:
                    token = secrets.token_hex(16)
                    fetched[name] = (given[name].strip(), self._folder / f"{token}.input")
                    given[name] = f"{self.inside}/inputs/{token}/{input_name(unquote(urlsplit(given[name]).path))}"
            passed["input"] = given
            echo = {name: value for name, value in values["input"].items() if name not in self._file_fields}
        # The guard itself reports the end, since coglet does not know the address of the output.
        passed |= {
            "webhook": f"{self.inside}/events",
            "webhook_events_filter": sorted({"start", *events} - {"completed"}),
        }
        try:
            # Written anew, so that coglet's parser sees what this one has seen, for example of a name given twice.
            body.write_text(json.dumps(passed, allow_nan=False), encoding="ascii")
        except ValueError:
            raise InputError("the request has a number that JSON does not have: send finite numbers") from None
        others = {name: values.get(name) for name in ("model", "version")}
        return Asked(id=found_id, body=body, webhook=webhook, events=events, fetched=fetched, echo=echo, named=others)

    def start(self, asked: Asked, *, wait_s: float, has_begun: asyncio.Event) -> asyncio.Task[Answer]:
        """Run a prediction in a task, and delete its files at its end.

        Args:
            asked: The prediction.
            wait_s: Time limit of waiting for the one before it.
            has_begun: Set when coglet has accepted it.
        """

        async def run() -> Answer:
            try:
                return await self._run(asked, wait_s, has_begun)
            finally:
                asked.body.unlink(missing_ok=True)
                for _, path in asked.fetched.values():
                    path.unlink(missing_ok=True)

        job = asyncio.create_task(run())
        self._jobs.add(job)  # The loop itself holds tasks weakly.
        job.add_done_callback(self._jobs.discard)
        return job

    async def _run(self, asked: Asked, wait_s: float, has_begun: asyncio.Event) -> Answer:
        async def on_event(event: dict[str, Any]) -> None:
            # Coglet's first event is always the start.
            if has_begun.is_set() or "start" in asked.events:
                self._report(asked, event)
            has_begun.set()

        answer, ending = None, {"id": asked.id, "status": "canceled", "logs": "", "metrics": {}}
        try:
            answer = await self._fetch(asked)
            if answer is None:
                answer = await self.coglet.predict(asked.id, asked.body, wait_s=wait_s, on_event=on_event)
            ending = object_of(answer.body)
        except SharpError as error:
            ending = {**ending, "status": "failed", "error": f"{error.code}: {error_body(error)['error']}"}
            raise
        finally:
            if "completed" in asked.events and (answer is None or answer.status == 200):
                self._report(asked, ending, None if answer is None else answer.output)
        return answer

    def _report(self, asked: Asked, body: Mapping[str, Any], output: Output | None = None) -> None:
        """Send a state of a prediction to its webhook, after those before it."""
        if output is not None:
            # A second name of the file, since the answer to the client deletes the first one.
            path = self._folder / f"{secrets.token_hex(16)}.output"
            path.hardlink_to(output.path)
            output = Output(path=path, media_type=output.media_type)
        webhook, before = asked.webhook, self._reports.get(asked.id)
        assert webhook is not None, "only a prediction with a webhook has events"

        async def report() -> None:
            if before is not None:
                await asyncio.wait([before])
            chunks, num_bytes = encoded(body, output)
            try:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._webhooks, post, webhook, chunks, num_bytes, self._settings)
            except InputError as error:
                _LOG.warning("the webhook of %s: %s", asked.id, error)  # The prediction itself goes on.
            finally:
                discard(output)
                if self._reports.get(asked.id) is task:
                    del self._reports[asked.id]

        self._reports[asked.id] = task = asyncio.create_task(report())

    async def _fetch(self, asked: Asked) -> Answer | None:
        """Fetch the inputs that are URLs, and return the answer if one cannot be fetched."""
        if not asked.fetched:
            return None
        try:
            async with self._fetching.fetched({name: url for name, (url, _) in asked.fetched.items()}) as files:
                for name, (_, path) in asked.fetched.items():
                    await asyncio.to_thread(_copy, files[name], path)
        except InputError as error:
            # In Cog's protocol, an input that cannot be fetched is a failed prediction.
            text = f"{error.code}: {error}"
            return Answer(
                status=200, body={"id": asked.id, "status": "failed", "error": text, "logs": "", "metrics": {}}
            )
        return None

    def respond(self, answer: Answer) -> Response:
        """Return the response with an answer."""
        if answer.output is None:
            return JSONResponse(object_of(answer.body), answer.status)
        return self.respond_with(object_of(answer.body), answer.output)

    def respond_with(
        self, body: Mapping[str, Any], output: Output, *, status: int = 200, is_kept: bool = False
    ) -> Response:
        """Return the response with an output, which is deleted afterwards unless it is to be kept."""
        seconds = self._settings.request_seconds
        return OutputResponse(body, output, transfers=self._transfers, seconds=seconds, status=status, is_kept=is_kept)

    def refuse(self, error: Exception, status: int | None = None) -> Response:
        """Return the response to a request that is refused."""
        return refusal(error, status)

    async def _give_input(self, request: Request) -> Response:
        token = request.path_params["token"]
        path = self._folder / f"{token}.input"
        if not re.fullmatch("[0-9a-f]{32}", token) or not path.is_file():
            return Response(status_code=404)
        return FileResponse(path, media_type="application/octet-stream")

    async def _take_output(self, request: Request) -> Response:
        prediction_id = request.headers.get("x-prediction-id", "")
        media_type = request.headers.get("content-type", "application/octet-stream")
        is_wanted = await self.coglet.receive_output(prediction_id, media_type, request.stream())
        return Response(status_code=200 if is_wanted else 404)

    async def _take_event(self, request: Request) -> Response:
        await self.coglet.receive_event(await request.json())
        return Response()


def _copy(file: IO[bytes], path: Path) -> None:
    try:
        file.seek(0)
        with path.open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
    except OSError as error:
        raise cannot_write(path, error) from error


class _MalformedError(InputError):
    """The body is not JSON: 400, as coglet answers."""


class _UnsupportedError(InputError):
    """The body is of another type than JSON: 415, as coglet answers."""


class OutputResponse(StreamingResponse):
    """Sends a JSON object whose output is a data URI of a file, in bounded time and memory, and deletes the file."""

    def __init__(
        self,
        body: Mapping[str, Any],
        output: Output,
        *,
        transfers: Transfers,
        seconds: float,
        status: int = 200,
        is_kept: bool = False,
    ) -> None:
        chunks, num_bytes = encoded(body, output)
        super().__init__(chunks, status, {"Content-Length": str(num_bytes)}, media_type="application/json")
        self._output = output
        self._seconds = seconds
        self._is_kept = is_kept
        self._transfers = transfers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        try:
            await send_paced(
                super().__call__, scope, receive, send, self._transfers, self._seconds, lambda outcome: None
            )
        finally:
            if not self._is_kept:
                discard(self._output)


def encoded(body: Mapping[str, Any], output: Output | None) -> tuple[Iterator[bytes], int]:
    """Return a JSON object in parts, with a file as the data URI of its output, and the size of all parts together."""
    if output is None:
        text = json.dumps(body).encode()
        return iter([text]), len(text)
    head = json.dumps({name: value for name, value in body.items() if name != "output"})
    prefix = f'{head[:-1]}, "output": "data:{_media_type(output.media_type)};base64,'.encode()
    suffix = b'"}'
    length = len(prefix) + 4 * -(-output.path.stat().st_size // 3) + len(suffix)

    def parts() -> Iterator[bytes]:
        yield prefix
        with output.path.open("rb") as file:
            while chunk := file.read(_BASE64_BYTES):
                yield base64.b64encode(chunk)
        yield suffix

    return parts(), length


def _media_type(text: str) -> str:
    return text if re.fullmatch(r"[\w.+-]+/[\w.+-]+", text, re.ASCII) else "application/octet-stream"


def check_id(prediction_id: object) -> None:
    """Check the id of a prediction; None is not given.

    Raises:
        InputError: Coglet cannot make a folder with this name, or makes it elsewhere.
    """
    if prediction_id is not None and not (isinstance(prediction_id, str) and ID.fullmatch(prediction_id)):
        raise InputError(f"id is {quoted(prediction_id)}: give 1 to 64 letters, digits, '-' and '_'")


def _webhook_of(values: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    """Return the webhook of a prediction, and the events that it wants."""
    webhook, wanted = values.get("webhook"), values.get("webhook_events_filter")
    if webhook is not None and not isinstance(webhook, str):
        raise InputError(f"webhook is {quoted(webhook)}: give an http or https address")
    if wanted is not None and not (isinstance(wanted, list) and all(isinstance(name, str) for name in wanted)):
        raise InputError(f"webhook_events_filter is {quoted(wanted)}: give a list of start, output, logs, completed")
    return webhook, tuple(name for name in _EVENTS if webhook is not None and (wanted is None or name in wanted))


def refusal(error: Exception, status: int | None = None) -> JSONResponse:
    """Return the response to a request that is refused: in our words, and under the names of Cog and Replicate."""
    own: dict[type[Exception], int] = {_MalformedError: 400, _UnsupportedError: 415}
    body = error_body(error)
    return JSONResponse(
        {**body, "detail": body["error"], "status": "failed"},
        status or own.get(type(error)) or status_of(error),
        headers=headers_of(error),
    )


async def _on_error(request: Request, error: Exception) -> Response:
    return refusal(error)


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    """Answer a request for an unknown path or method."""
    body = {"error": error.detail, "detail": error.detail, "status": "failed"}
    return JSONResponse(body, error.status_code, headers=error.headers)


def _discard_answer(job: asyncio.Task[Answer]) -> None:
    """Delete the output of a prediction whose answer nobody receives."""
    if not job.cancelled() and job.exception() is None:
        discard(job.result().output)

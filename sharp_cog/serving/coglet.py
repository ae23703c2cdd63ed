"""One process of coglet, Cog's HTTP server, as a service behind the guard: one prediction at a time, and its health.

Coglet 0.23.1 has faults that docs/coglet-report.md describes. This module works around them:

- Its only slot is free a while after the answer, and requests until then get 409: a prediction waits for the slot.
- It hangs for ever if a prediction is cancelled while its inputs are read: a cancellation waits until the model begins.
- It holds outputs in memory, as base64: here each output is uploaded to a file, from which it is answered.
- A lost slot leaves it busy for ever: the watchdog calls that unhealthy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import BusyError, DeadlineError
from sharp_cog.files.atomic import cannot_write
from sharp_cog.serving.cog_worker import PREDICTIONS
from sharp_cog.text import plain

_LOG = logging.getLogger(__name__)

ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""Ids of predictions that are passed on; coglet makes a folder with this name."""
SLOT = "slot"
"""Reason of the refusal of a prediction that others precede, for which Cog's protocol has the status 409."""
HEALTH_SECONDS = 10.0
"""Time limit of a health check."""
_CHUNK_BYTES = 1 << 20
_POLL_SECONDS = 0.02
"""Pause between looks at coglet's slot or the model's folder, which takes about a millisecond of CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A prediction that a client asks for.

    Attributes:
        id: Its id.
        body: File with the request for coglet.
        webhook: Address for its states; None if it has none.
        events: Events that are sent there.
        fetched: URLs of its inputs by field, each with the file to fetch it to.
        echo: Its inputs without files, to show them to the client again.
        named: Fields beside the input that clients of Replicate send, such as the version.
    """

    id: str
    body: Path
    webhook: str | None
    events: tuple[str, ...]
    fetched: Mapping[str, tuple[str, Path]]
    echo: Mapping[str, Any]
    named: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """File that a prediction has uploaded."""

    path: Path
    media_type: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Answer to a prediction.

    Attributes:
        status: HTTP status.
        body: JSON object without the output, or another text that coglet has answered.
        output: File of the output; whoever receives the answer deletes it.
    """

    status: int
    body: dict[str, Any] | str
    output: Output | None = None


Event = Callable[[dict[str, Any]], Awaitable[None]]
"""Receiver of the states of a prediction, as coglet sends them to webhooks."""


@dataclass(kw_only=True, slots=True)
class _Run:
    """A prediction that coglet has received.

    Attributes:
        id: Id of the prediction.
        marker: File that the predictor deletes when it begins; None before its folder exists.
        on_event: Receiver of its states.
        output: Its output, as soon as coglet has uploaded it.
    """

    id: str
    marker: Path | None
    on_event: Event | None
    output: Output | None = None
    has_ended: asyncio.Event = field(default_factory=asyncio.Event)


class Coglet:
    """Client of one coglet.

    Attributes:
        folder: Folder of bodies and outputs.
        is_stopping: True once no more predictions begin.
    """

    def __init__(self, url: str, *, inside: str, settings: ServiceSettings, folder: Path, temporary: Path) -> None:
        """Create the client; `watch` must run beside it.

        Args:
            url: Address of coglet.
            inside: Address at which coglet reaches the guard, with a secret path.
            settings: Limits of time and of waiting requests.
            folder: Folder for outputs.
            temporary: Folder of coglet's own temporary files, in which the predictor has its folder.
        """
        # No proxy of the environment: all requests stay on this machine.
        self._client = httpx2.AsyncClient(base_url=url, timeout=httpx2.Timeout(HEALTH_SECONDS), trust_env=False)
        self._inside = inside
        self._settings = settings
        self._temporary = temporary
        self._slot = asyncio.Lock()
        self._run: _Run | None = None
        self._num_waiting = 0
        self._busy_since: float | None = None
        self._is_stuck_logged = False
        self._stops = set[asyncio.Task[None]]()
        self.folder = folder
        self.is_stopping = False

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    @property
    def running(self) -> str | None:
        """Id of the prediction that coglet has."""
        return self._run.id if self._run else None

    @property
    def is_stuck(self) -> bool:
        """Whether coglet has been busy for longer than the longest prediction."""
        if self._busy_since is None:
            return False
        return time.monotonic() - self._busy_since > self._settings.request_seconds

    async def get(self, path: str) -> httpx2.Response:
        """Return coglet's answer to a GET."""
        try:
            return await self._client.get(path)
        except httpx2.HTTPError as error:
            raise _gone(error) from error

    async def shut_down(self) -> None:
        """Let coglet end its process."""
        with contextlib.suppress(httpx2.HTTPError):  # It may close the connection before it answers.
            await self._client.post("/shutdown")

    async def health(self) -> dict[str, Any]:
        """Return coglet's health, or `UNHEALTHY` if it has been busy for too long."""
        try:
            body: dict[str, Any] = (await self._client.get("/health-check")).json()
        except (httpx2.HTTPError, ValueError):
            body = {"status": "STARTING"}  # It does not listen yet. After its end, so does the guard.
        if body["status"] != "BUSY":
            self._busy_since = None
        elif self._busy_since is None:
            self._busy_since = time.monotonic()
        if not self.is_stuck:
            self._is_stuck_logged = False
            return body
        reason = (
            f"busy for more than {self._settings.request_seconds:g} s, the longest time of a prediction "
            "(SHARP_REQUEST_SECONDS): restart the server"
        )
        if not self._is_stuck_logged:
            _LOG.error("Cog's server is UNHEALTHY: %s", reason)
            self._is_stuck_logged = True
        return {**body, "status": "UNHEALTHY", "user_healthcheck_error": reason}

    async def watch(self) -> None:
        """Look at the health again and again, so that it is known since when coglet has been busy."""
        while True:
            await self.health()
            await asyncio.sleep(min(5.0, self._settings.request_seconds / 10))

    async def check(self) -> None:
        """Check that coglet takes predictions.

        Raises:
            BusyError: It is starting, stopping, or broken.
        """
        status = "stopping" if self.is_stopping else (await self.health())["status"]
        if status not in ("READY", "BUSY"):
            raise BusyError(f"the server is {status}: ask /health-check until it is READY", retry_after_s=5)

    async def predict(self, prediction_id: str, body: Path, *, wait_s: float, on_event: Event | None = None) -> Answer:
        """Run a prediction when the slot is free.

        If the caller is cancelled, so is the prediction, and the slot is free again when it has ended.

        Args:
            prediction_id: Id, which matches `ID`.
            body: File with the request.
            wait_s: Time limit of waiting for the slot in seconds.
            on_event: Receiver of the prediction's states.

        Raises:
            BusyError: The slot has not become free, or coglet is stopping.
            DeadlineError: The prediction takes longer than the settings allow.
            OutputError: The disk is full.
        """
        await self._take_slot(wait_s)
        run = _Run(id=prediction_id, marker=self._marker(), on_event=on_event)
        self._run = run
        work = asyncio.create_task(self._ask(run, body))
        seconds = self._settings.request_seconds
        try:
            return await asyncio.wait_for(asyncio.shield(work), seconds)
        except TimeoutError:
            self._stop_later(run, work)
            raise DeadlineError(f"the prediction took longer than {seconds:g} s: try again later") from None
        except asyncio.CancelledError:
            self._stop_later(run, work)
            raise

    async def cancel(self, prediction_id: str) -> bool:
        """Cancel a prediction once that is safe.

        Returns:
            Whether coglet has such a prediction.
        """
        run = self._run
        if run is None or run.id != prediction_id:
            return False
        while not run.has_ended.is_set() and run.marker is not None and run.marker.exists():
            await asyncio.sleep(_POLL_SECONDS)
        if run.has_ended.is_set():
            return False
        response = await self._client.post(f"/predictions/{prediction_id}/cancel")
        return response.status_code == 200

    async def receive_event(self, event: dict[str, Any]) -> None:
        """Pass on what coglet sends to its webhook."""
        run = self._run
        if run is not None and run.on_event is not None and event.get("id") == run.id:
            event.pop("output", None)
            await run.on_event(event)

    async def receive_output(self, prediction_id: str, media_type: str, chunks: AsyncIterator[bytes]) -> bool:
        """Store a file that coglet uploads.

        Returns:
            Whether the file belongs to the running prediction.

        Raises:
            OutputError: The disk is full.
        """
        run = self._run
        if run is None or run.id != prediction_id:
            return False
        path = self.folder / f"{secrets.token_hex(16)}.output"
        try:
            await store(path, chunks)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        discard(run.output)
        run.output = Output(path=path, media_type=media_type)
        return True

    async def _take_slot(self, wait_s: float) -> None:
        if self._num_waiting >= self._settings.queue_size:
            raise BusyError(
                f"{self._num_waiting} predictions wait already: try again later", retry_after_s=10, reason=SLOT
            )
        self._num_waiting += 1
        try:
            async with asyncio.timeout(wait_s):
                await self._slot.acquire()
                try:
                    await self._until_free()
                except BaseException:
                    self._slot.release()
                    raise
        except TimeoutError:
            raise BusyError("another prediction is under way: try again", retry_after_s=5, reason=SLOT) from None
        finally:
            self._num_waiting -= 1

    async def _until_free(self) -> None:
        while (status := (await self.health())["status"]) == "BUSY":
            await asyncio.sleep(_POLL_SECONDS)
        if self.is_stopping or status != "READY":
            await self.check()

    def _marker(self) -> Path | None:
        """Put a file into the predictor's folder, which the predictor deletes when it begins."""
        for folder in self._temporary.glob("sharp_cog-scratch-*"):
            marker = folder / "not-begun"
            with contextlib.suppress(OSError):  # On a full disk, a cancellation does not wait.
                marker.touch()
                return marker
        return None

    async def _ask(self, run: _Run, body: Path) -> Answer:
        """Send a prediction to coglet, and give the slot back when it has ended."""
        try:
            headers = {"Content-Type": "application/json", "Content-Length": str(body.stat().st_size)}
            response = await self._client.put(
                f"/predictions/{run.id}", content=_chunks(body), headers=headers, timeout=None
            )
            return _answer(response, run)
        except httpx2.HTTPError as error:
            raise _gone(error) from error
        finally:
            run.has_ended.set()
            if run.marker is not None:
                run.marker.unlink(missing_ok=True)
            self._run = None
            self._busy_since = None
            _remove_folder(run.id)
            self._slot.release()

    def _stop_later(self, run: _Run, work: asyncio.Task[Answer]) -> None:
        async def stop() -> None:
            with contextlib.suppress(httpx2.HTTPError):
                await self.cancel(run.id)
            with contextlib.suppress(BusyError):
                discard((await work).output)

        task = asyncio.create_task(stop())
        self._stops.add(task)
        task.add_done_callback(self._stops.discard)


def discard(output: Output | None) -> None:
    """Delete the file of an output."""
    if output is not None:
        output.path.unlink(missing_ok=True)


async def store(path: Path, chunks: AsyncIterator[bytes]) -> None:
    """Write what arrives to a file.

    Raises:
        OutputError: The file cannot be written.
    """
    try:
        with path.open("wb") as file:
            waiting = bytearray()
            async for chunk in chunks:
                waiting += chunk
                # A change of threads takes longer than to write the 64 kB that come at a time.
                if len(waiting) >= _CHUNK_BYTES:
                    await asyncio.to_thread(file.write, waiting)
                    waiting = bytearray()
            file.write(waiting)
    except OSError as error:
        raise cannot_write(path, error) from error


def _answer(response: httpx2.Response, run: _Run) -> Answer:
    try:
        body = response.json()
    except ValueError:
        return Answer(status=response.status_code, body=response.text)
    if run.output is not None and body.get("status") == "succeeded":
        body.pop("output", None)
        return Answer(status=response.status_code, body=body, output=run.output)
    discard(run.output)
    return Answer(status=response.status_code, body=body)


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
            yield chunk


def _gone(error: httpx2.HTTPError) -> BusyError:
    _LOG.error("Cog's server does not answer: %s %s", type(error).__name__, plain(error))
    return BusyError("the server is starting or stopping: try again", retry_after_s=5)


def _remove_folder(prediction_id: str) -> None:
    """Remove the empty folders that coglet makes for a prediction and leaves."""
    assert ID.fullmatch(prediction_id)
    for folder in ("outputs", "inputs", "."):
        with contextlib.suppress(OSError):
            (PREDICTIONS / prediction_id / folder).rmdir()


def input_name(path: str) -> str:
    """Return the name of an input, after which the predictor names its output: no folders, no special characters."""
    name = path.replace("\\", "/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[-100:].lstrip(".") or "file"


def object_of(body: Mapping[str, Any] | str) -> dict[str, Any]:
    """Return the body of an answer as an object: any other text becomes its error."""
    return {"error": body, "status": "failed"} if isinstance(body, str) else dict(body)

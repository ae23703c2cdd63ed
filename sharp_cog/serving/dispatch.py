"""Dispatch of many callers to one device: a bounded queue, and one image at a time on the device.

The next image is decoded and the last splats are written meanwhile. The dispatcher belongs to asyncio, and runs long
work in threads. A caller that is cancelled loses its place in the queue, and what it left behind is deleted.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sharp_cog.config.process import available_bytes, give_back
from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import BusyError, DeviceError, FailedError, RequestTooLargeError, SharpError
from sharp_cog.files.scratch import ScratchFolder
from sharp_cog.pipeline.conveyor import Conveyor, Stage
from sharp_cog.pipeline.pipeline import NUM_DECODERS, NUM_ENCODERS, SharpPipeline
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.pipeline.request import Request
from sharp_cog.serving.budget import Budget
from sharp_cog.serving.transfers import Mean
from sharp_cog.text import trace

_LOG = logging.getLogger(__name__)

FREE_SHARE = 0.5
"""Share of the memory that is free once the model is loaded for the images of requests; the network needs the rest."""
MAX_UNDER_WAY = 4
"""Maximum number of requests that hold an image or a splat: one on the device, one decoded, two being written."""

State = Literal["loading", "ready", "failed", "stopping"]
Read = Callable[[], Request]
"""Function that reads a request's bytes, which lie on disk while the request is queued."""
Write = Callable[[Path, Prediction], object]
"""Function that writes a prediction to a file."""


@dataclass(slots=True)
class Place:
    """A request's place in the service.

    Attributes:
        stage: Stage that the request is in: `queued`, `decode`, `predict` or `encode`.
    """

    stage: str = "queued"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    """An item of the conveyor."""

    place: Place
    read: Read
    write: Write
    path: Path


class Dispatcher:
    """Runs requests through one pipeline.

    Attributes:
        state: `loading`, `ready`, `failed` (the model could not be loaded, or the device failed) or `stopping`.
        failure: The error behind the state `failed`.
        pipeline: None until the model is loaded.
        num_admitted: Number of requests that are queued or under way.
    """

    def __init__(self, load: Callable[[], SharpPipeline], settings: ServiceSettings) -> None:
        self.state: State = "loading"
        self.failure: BaseException | None = None
        self.pipeline: SharpPipeline | None = None
        self.num_admitted = 0
        self._load = load
        self._settings = settings
        self._conveyor: Conveyor[Prediction] = Conveyor(
            Stage(self._decode, NUM_DECODERS, "decode"),
            Stage(self._predict, 1, "device"),
            Stage(self._encode, NUM_ENCODERS, "encode"),
        )
        # Another amount follows once the model is loaded.
        self._memory = Budget(sys.maxsize)
        self._measurer = ThreadPoolExecutor(1, thread_name_prefix="measure")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        # asyncio admits the waiters of a semaphore in the order in which they came: this is the queue.
        self._room = asyncio.Semaphore(MAX_UNDER_WAY)
        self._places: dict[str, Place] = {}
        # Seconds from the end of one request to that of the next, while requests are under way.
        self._interval = Mean()
        self._last_end_s = time.monotonic()
        # Waits that `stop` ends, each with the place of its request once there is one.
        self._waits: dict[asyncio.Timeout, Place | None] = {}
        self._folder = ScratchFolder()
        self._loading: asyncio.Task[None] | None = None
        self._tidying: Future[None] | None = None

    def start(self) -> None:
        """Begin to load the model in a thread, while the service answers that it is loading."""
        self._loading = asyncio.create_task(self._load_pipeline())

    async def _load_pipeline(self) -> None:
        start = time.monotonic()
        try:
            loop = asyncio.get_running_loop()
            self.pipeline = await loop.run_in_executor(self._loader, self._load)
            # A pipeline keeps no predictions by default; here the number is a setting of the service.
            self.pipeline.kept.limit = self._settings.kept_predictions
            warm_up_s = await loop.run_in_executor(self._loader, self.pipeline.warm_up)
        except Exception as error:  # noqa: BLE001 - the health check reports every error
            self._fail(error, "the model cannot be loaded")
        else:
            self._memory = Budget(self._memory_for_images())
            # The best guess of a request's seconds until one has ended; `lift` needs no warm-up.
            self._interval = Mean(warm_up_s or 1.0)
            model, device = self.pipeline.settings.model, self.pipeline.device
            ready_s = time.monotonic() - start
            _LOG.info("%s on %s: ready after %.1f s, of which warm-up %.1f s", model, device, ready_s, warm_up_s)
            # The service may have been stopped meanwhile.
            if self.state == "loading":
                self.state = "ready"

    def _memory_for_images(self) -> int:
        """Return the bytes of memory for decoding, by the settings or by what is free."""
        if self._settings.memory_megabytes:
            return int(1e6 * self._settings.memory_megabytes)
        available = available_bytes()
        return sys.maxsize if available is None else int(FREE_SHARE * available)

    def _fail(self, error: BaseException, what: str) -> None:
        _LOG.error("%s: %s", what, error if isinstance(error, SharpError) else trace(error))
        self.state, self.failure = "failed", error

    def stop(self) -> None:
        """Refuse new requests, drop those that have not reached the device, and finish the rest.

        Call `close` afterwards. The call must come from the thread of the event loop.
        """
        self.state = "stopping"
        for wait, place in list(self._waits.items()):
            # A request that is on the device, or beyond it, is worth its end.
            if place is None or place.stage in ("queued", "decode"):
                wait.reschedule(0.0)

    async def idle(self) -> None:
        """Wait until no request is admitted."""
        while self.num_admitted:
            await asyncio.sleep(0.02)

    @asynccontextmanager
    async def until_stopped(self, place: Place | None = None) -> AsyncIterator[None]:
        """Let `stop` end the block, unless its request is on the device by then.

        Args:
            place: Place of the request, if it is admitted.

        Raises:
            BusyError: The service stops.
        """
        self._check_running()
        try:
            async with asyncio.timeout(None) as wait:
                self._waits[wait] = place
                try:
                    yield
                finally:
                    del self._waits[wait]
        except TimeoutError:
            if wait.expired():
                self._check_running()
            raise

    def close(self) -> None:
        """Wait for the threads, and delete all files."""
        self.state = "stopping"
        # The stages use the pipeline and the folder, so they end first.
        self._conveyor.close()
        self._loader.shutdown(wait=True, cancel_futures=True)
        self._measurer.shutdown(wait=True, cancel_futures=True)
        if self.pipeline is not None:
            self.pipeline.kept.clear()
        self.remove_files()

    def remove_files(self) -> None:
        """Delete all files, even if `close` still waits for a thread."""
        self._folder.remove()

    def check(self) -> None:
        """Check that a request could be admitted now.

        Raises:
            BusyError: The model is not loaded, the service stops, or the queue is full.
        """
        if self.state == "loading":
            raise BusyError("the model is being loaded: try again in a while", retry_after_s=5, reason="loading")
        if self.state == "failed":
            raise FailedError(
                "the service has failed and must be restarted: tell its operator",
                code=getattr(self.failure, "code", SharpError.code),
            )
        self._check_running()
        # One more than the queue holds is admitted, because the request on the device does not wait.
        num_ahead = self.num_admitted - self._settings.queue_size
        if num_ahead > 0:
            wait_s = self._seconds_until_end_of(num_ahead)
            raise BusyError(
                f"{self.num_admitted} requests are waiting or under way, and the queue is full: try again in "
                f"{wait_s} s",
                retry_after_s=wait_s,
            )

    def _check_running(self) -> None:
        if self.state == "stopping":
            raise BusyError("the service is stopping: try again in a while", retry_after_s=5, reason="stopping")

    def _seconds_until_end_of(self, num_requests: int) -> int:
        """Return the seconds in which so many requests will end, at least 1, by those that have ended."""
        interval_s = self._interval.seconds
        rest_s = interval_s - (time.monotonic() - self._last_end_s)
        # If the next one is late already, nothing is known but that it has not ended.
        return max(1, math.ceil((num_requests - 1) * interval_s + (rest_s if rest_s > 0 else interval_s)))

    @contextmanager
    def admitted(self, request_id: str, *, is_expected: bool = False) -> Iterator[Place]:
        """Hold a place in the queue until the end of the block.

        Args:
            request_id: Name of the request, for `progress`.
            is_expected: Whether `check` let the request pass before its body was read. It then gets a place even if the
                queue has filled meanwhile, so that no upload is in vain; the number of uploads and fetches limits how
                many these are.

        Raises:
            BusyError: See `check`.
        """
        if not is_expected or self.state != "ready":
            self.check()
        place = Place()
        if not self.num_admitted:
            self._last_end_s = time.monotonic()
        # Only the event loop's thread counts, so no lock is needed.
        self.num_admitted += 1
        self._places[request_id] = place
        try:
            yield place
        finally:
            self.num_admitted -= 1
            if self._places.get(request_id) is place:  # Another request may have come under the same name.
                del self._places[request_id]

    def progress(self, request_id: str) -> dict[str, str | int] | None:
        """Return a request's `stage` (queued, decode, predict, encode) and, while queued, the number `ahead` of it."""
        place = self._places.get(request_id)
        if place is None:
            return None
        if place.stage != "queued":
            return {"stage": place.stage}
        return {"stage": place.stage, "ahead": list(self._places).index(request_id)}

    def new_path(self, suffix: str) -> Path:
        """Return a path for a result, which the caller deletes; nothing exists there yet."""
        return self._folder.path / f"{secrets.token_hex(8)}{suffix}"

    async def run(
        self, place: Place, read: Read, write: Write, path: Path, *, measure: Callable[[], int] | None = None
    ) -> Prediction:
        """Predict a splat and write its file.

        Args:
            place: Place of the request, as `admitted` returns it.
            read: Reads the request, in a thread, once there is room for its bytes in memory.
            write: Writes the file.
            path: The file. Nothing is left there if the call is cancelled.
            measure: Returns the bytes of memory that the request needs; called in a thread. The request waits until as
                much is left. None does not wait.

        Raises:
            RequestTooLargeError: The request needs more memory than there is for all.
            SharpError: Any error of the pipeline.
        """
        async with self.until_stopped(place), self._room, AsyncExitStack() as stack:
            if measure is not None:
                await stack.enter_async_context(self._memory.held(await self._measured(measure)))
            ticket = self._conveyor.push(_Task(place=place, read=read, write=write, path=path))
            try:
                prediction = await asyncio.wrap_future(ticket.future)
            except asyncio.CancelledError:
                # The stage at work goes on in its thread, and may still write the file.
                ticket.cancel()
                ticket.future.add_done_callback(lambda _: path.unlink(missing_ok=True))
                raise
            except DeviceError as error:
                # No later prediction can work, so later requests are refused and `/health` reports the failure.
                self._fail(error, "the device failed")
                raise
            finally:
                self._tidy()
        now_s = time.monotonic()
        self._interval.add(now_s - self._last_end_s)
        self._last_end_s = now_s
        return prediction

    async def _measured(self, measure: Callable[[], int]) -> int:
        num_bytes = await asyncio.get_running_loop().run_in_executor(self._measurer, measure)
        if num_bytes > self._memory.amount:
            raise RequestTooLargeError(
                f"the image and the depth map need some {num_bytes / 1e6:.0f} MB of memory, and the service has "
                f"{self._memory.amount / 1e6:.0f} MB for them: downscale them"
            )
        return num_bytes

    def _tidy(self) -> None:
        """Give memory back to the system, once for all requests that end meanwhile."""
        # The loader's thread is idle once the model is loaded, and takes no more work after `close`.
        if (self._tidying is None or self._tidying.done()) and self.state != "stopping":
            self._tidying = self._loader.submit(give_back)

    # The conveyor passes on pairs, so that an image is freed once there is a splat, and a splat once it is written.

    def _decode(self, task: _Task) -> tuple[_Task, Request]:
        assert self.pipeline is not None
        task.place.stage = "decode"
        return task, self.pipeline.decode(task.read())

    def _predict(self, item: tuple[_Task, Request]) -> tuple[_Task, Prediction]:
        assert self.pipeline is not None
        task, request = item
        task.place.stage = "predict"
        return task, self.pipeline.predict(request)

    def _encode(self, item: tuple[_Task, Prediction]) -> Prediction:
        task, prediction = item
        task.place.stage = "encode"
        task.write(task.path, prediction)
        return prediction

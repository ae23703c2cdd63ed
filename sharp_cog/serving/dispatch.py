"""Dispatch of many callers to one device: a bounded queue, and one image at a time on the device.

The next image is decoded and the last splats are written meanwhile. The dispatcher belongs to asyncio, and runs long
work in threads. A caller that is cancelled loses its place in the queue, and what it left behind is deleted.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sharp_cog.config.process import give_back
from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import BusyError, DeviceError, SharpError
from sharp_cog.files.scratch import ScratchFolder
from sharp_cog.pipeline.conveyor import Conveyor, Stage
from sharp_cog.pipeline.pipeline import NUM_DECODERS, NUM_ENCODERS, SharpPipeline
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.pipeline.request import Request
from sharp_cog.text import trace

_LOG = logging.getLogger(__name__)

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
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        # asyncio admits the waiters of a semaphore in the order in which they came: this is the queue.
        self._room = asyncio.Semaphore(MAX_UNDER_WAY)
        self._places: dict[str, Place] = {}
        # Seconds of a request, a guess until the first one has ended.
        self._mean_s = 1.0
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
            model, device = self.pipeline.settings.model, self.pipeline.device
            ready_s = time.monotonic() - start
            _LOG.info("%s on %s: ready after %.1f s, of which warm-up %.1f s", model, device, ready_s, warm_up_s)
            # The service may have been stopped meanwhile.
            if self.state == "loading":
                self.state = "ready"

    def _fail(self, error: BaseException, what: str) -> None:
        _LOG.error("%s: %s", what, error if isinstance(error, SharpError) else trace(error))
        self.state, self.failure = "failed", error

    def stop(self) -> None:
        """Refuse new requests and finish those under way. Call `close` afterwards."""
        self.state = "stopping"

    def close(self) -> None:
        """Wait for the threads, and delete all files."""
        self.stop()
        # The stages use the pipeline and the folder, so they end first.
        self._conveyor.close()
        self._loader.shutdown(wait=True, cancel_futures=True)
        if self.pipeline is not None:
            self.pipeline.kept.clear()
        self._folder.remove()

    def check(self) -> None:
        """Check that a request could be admitted now.

        Raises:
            BusyError: The model is not loaded, the service stops, or the queue is full.
        """
        if self.state == "loading":
            raise BusyError("the model is being loaded: try again in a while", retry_after_s=5)
        if self.state == "failed":
            raise BusyError("the service has failed and must be restarted: tell its operator", retry_after_s=60)
        if self.state == "stopping":
            raise BusyError("the service is stopping: try again in a while", retry_after_s=5)
        # One more than the queue holds is admitted, because the request on the device does not wait.
        if self.num_admitted > self._settings.queue_size:
            wait_s = max(1, round(self._mean_s * self.num_admitted))
            raise BusyError(
                f"{self.num_admitted} requests are waiting or under way, and the queue is full: try again in "
                f"{wait_s} s",
                retry_after_s=wait_s,
            )

    @contextmanager
    def admitted(self, request_id: str) -> Iterator[Place]:
        """Hold a place in the queue until the end of the block.

        Raises:
            BusyError: See `check`.
        """
        # The queue may have filled while the request's body was read.
        self.check()
        place = Place()
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

    async def run(self, place: Place, read: Read, write: Write, path: Path) -> Prediction:
        """Predict a splat and write its file.

        Args:
            place: Place of the request, as `admitted` returns it.
            read: Reads the request, in a thread, once there is room for its bytes in memory.
            write: Writes the file.
            path: The file. Nothing is left there if the call is cancelled.

        Raises:
            SharpError: Any error of the pipeline.
        """
        async with self._room:
            start = time.monotonic()
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
        # An exponential moving average, in which about the last five requests count.
        self._mean_s += 0.2 * (time.monotonic() - start - self._mean_s)
        return prediction

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

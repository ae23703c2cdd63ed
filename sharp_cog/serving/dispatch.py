"""Many callers, one device: a bounded queue, one picture at a time on the device, its neighbours read and written.

For asyncio; what takes time runs in threads. A caller that is cancelled leaves the queue, and what it left behind is
deleted.
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
from typing import Literal, TypeVar

from sharp_cog.config.process import give_back
from sharp_cog.config.settings import ServiceSettings
from sharp_cog.errors import BusyError, DeviceError, SharpError
from sharp_cog.files.scratch import ScratchFolder
from sharp_cog.pipeline.conveyor import Conveyor, Stage
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.pipeline.request import Request
from sharp_cog.text import trace

_LOG = logging.getLogger(__name__)

MAX_UNDER_WAY = 4
"""Requests that hold a decoded image or a splat: one on the device, one decoded ahead of it, two being written."""

State = Literal["loading", "ready", "failed", "stopping"]
Write = Callable[[Path, Prediction], object]
"""Writes a prediction to a file."""

_T = TypeVar("_T")


@dataclass(kw_only=True, slots=True)
class _Task:
    """A request on the conveyor, and what becomes of it there."""

    request: Request
    write: Write
    path: Path
    prediction: Prediction | None = None


class Dispatcher:
    """Runs requests through one pipeline.

    Attributes:
        state: `loading`, `ready`, `failed` (to load, or the device did) or `stopping`.
        failure: Why, where it failed.
        pipeline: None until it is loaded.
        num_admitted: Requests that wait or are worked on.
    """

    def __init__(self, load: Callable[[], SharpPipeline], settings: ServiceSettings) -> None:
        self.state: State = "loading"
        self.failure: BaseException | None = None
        self.pipeline: SharpPipeline | None = None
        self.num_admitted = 0
        self._load = load
        self._settings = settings
        self._conveyor: Conveyor[_Task] = Conveyor(
            Stage(self._decode, 2, "decode"),
            Stage(self._predict, 1, "device"),
            Stage(self._encode, 2, "encode"),
            max_items=MAX_UNDER_WAY,
        )
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load")
        self._at_work = asyncio.Semaphore(MAX_UNDER_WAY)
        self._stages: dict[str, str] = {}
        self._seconds = 1.0
        self._folder = ScratchFolder()
        self._loading: asyncio.Task[None] | None = None
        self._tidying: Future[None] | None = None

    def start(self) -> None:
        """Begins to load the model, in a thread: the service answers meanwhile that it is loading."""
        self._loading = asyncio.create_task(self._load_pipeline())

    async def _load_pipeline(self) -> None:
        start = time.monotonic()
        try:
            loop = asyncio.get_running_loop()
            self.pipeline = await loop.run_in_executor(self._loader, self._load)
            self.pipeline.num_kept_predictions = self._settings.kept_predictions
            warm_up_s = await loop.run_in_executor(self._loader, self.pipeline.warm_up)
        except Exception as error:  # noqa: BLE001 - whatever it is, the health check tells it
            self._fail(error, "the model cannot be loaded")
        else:
            model, device = self.pipeline.settings.model, self.pipeline.device
            ready_s = time.monotonic() - start
            _LOG.info("%s on %s: ready after %.1f s, of which warm-up %.1f s", model, device, ready_s, warm_up_s)
            if self.state == "loading":
                self.state = "ready"

    def _fail(self, error: BaseException, what: str) -> None:
        _LOG.error("%s: %s", what, error if isinstance(error, SharpError) else trace(error))
        self.state, self.failure = "failed", error

    def stop(self) -> None:
        """Takes no more; what is under way goes on. Call `close` after it."""
        self.state = "stopping"

    def close(self) -> None:
        """Waits for the threads, and deletes what is left."""
        self.stop()
        self._conveyor.close()
        self._loader.shutdown(wait=True, cancel_futures=True)
        if self.pipeline is not None:
            self.pipeline.forget_predictions()
        self._folder.remove()

    def check(self) -> None:
        """Refuses a request that could not be taken now.

        Raises:
            BusyError: The model is not there, the service stops, or the queue is full.
        """
        if self.state == "loading":
            raise BusyError("the model is being loaded: try again in a while", retry_after_s=5)
        if self.state == "failed":
            raise BusyError("the service has failed and must be started anew: tell who runs it", retry_after_s=60)
        if self.state == "stopping":
            raise BusyError("the service is stopping: try again in a while", retry_after_s=5)
        if self.num_admitted > self._settings.queue_size:
            wait_s = max(1, round(self._seconds * self.num_admitted))
            raise BusyError(
                f"{self.num_admitted} requests are waiting or under way, and no more may: try again in {wait_s} s",
                retry_after_s=wait_s,
            )

    @contextmanager
    def admitted(self, request_id: str) -> Iterator[None]:
        """A place in the queue; whoever leaves the block gives it back.

        Raises:
            BusyError: As `check`.
        """
        self.check()
        self.num_admitted += 1
        self._stages[request_id] = "queued"
        try:
            yield
        finally:
            self.num_admitted -= 1
            self._stages.pop(request_id, None)

    def progress(self, request_id: str) -> dict[str, str | int] | None:
        """Where a request is: `stage` (queued, decode, predict, encode) and, while queued, how many are `ahead`."""
        stage = self._stages.get(request_id)
        if stage is None:
            return None
        if stage != "queued":
            return {"stage": stage}
        return {"stage": stage, "ahead": list(self._stages).index(request_id)}

    async def run(self, request: Request, write: Write, *, suffix: str) -> tuple[Path, Prediction]:
        """Make a splat and its file, for a request that is admitted under its key.

        Args:
            request: The request.
            write: Writes the file.
            suffix: Suffix of the file's name.

        Returns:
            The file, which the caller deletes, and the prediction.

        Raises:
            SharpError: Any error of the pipeline.
        """
        path = self._folder.path / f"{secrets.token_hex(8)}{suffix}"
        task = _Task(request=request, write=write, path=path)
        async with self._at_work:
            begun = time.monotonic()
            ticket = self._conveyor.push(task)
            try:
                await asyncio.wrap_future(ticket.future)
            except asyncio.CancelledError:
                # Whatever has begun goes on; its file is nobody's.
                ticket.future.add_done_callback(lambda _: path.unlink(missing_ok=True))
                ticket.cancel()
                raise
            except DeviceError as error:
                self._fail(error, "the device failed")
                raise
            finally:
                ticket.release()
                self._tidy()
        self._seconds += 0.2 * (time.monotonic() - begun - self._seconds)
        assert task.prediction is not None
        return path, task.prediction

    def _tidy(self) -> None:
        """Give memory back to the system, once for all requests that end meanwhile."""
        if (self._tidying is None or self._tidying.done()) and self.state != "stopping":
            self._tidying = self._loader.submit(give_back)

    def _decode(self, task: _Task) -> _Task:
        assert self.pipeline is not None
        self._note(task, "decode")
        task.request = self.pipeline.decode(task.request)
        return task

    def _predict(self, task: _Task) -> _Task:
        assert self.pipeline is not None
        self._note(task, "predict")
        task.prediction = self.pipeline.predict(task.request)
        return task

    def _encode(self, task: _Task) -> _Task:
        assert task.prediction is not None
        self._note(task, "encode")
        task.write(task.path, task.prediction)
        return task

    def _note(self, task: _Task, stage: str) -> None:
        """Record where a request is, unless its caller has left."""
        if task.request.key in self._stages:
            self._stages[task.request.key] = stage

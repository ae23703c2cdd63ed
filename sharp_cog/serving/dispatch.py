"""Many callers, one device: a bounded queue, one picture at a time on the device, its neighbours read and written.

For asyncio; what takes time runs in threads. A caller that is cancelled leaves the queue, and what it left behind is
deleted.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal, TypeVar

from sharp_cog import formats
from sharp_cog.errors import BusyError, DeviceError, SharpError
from sharp_cog.options import OutputOptions, PredictOptions
from sharp_cog.pipeline import SharpPipeline
from sharp_cog.prediction import Decoded, Prediction
from sharp_cog.redact import trace
from sharp_cog.scratch import ScratchFolder
from sharp_cog.serving.memory import give_back
from sharp_cog.serving.settings import ServiceSettings

_LOG = logging.getLogger(__name__)

AT_WORK = 4
"""Requests that hold a decoded picture or a splat: one on the device, one read ahead of it, two being written."""

State = Literal["loading", "ready", "failed", "stopping"]
Read = Callable[[], tuple[bytes, bytes | None]]
"""Returns the bytes of the photograph and of the depth map; called when it is their turn."""
Write = Callable[[Path, Prediction], object]
Turn = Callable[[], Awaitable[None]]

_T = TypeVar("_T")
_OF_PREDICTION = [
    option.name
    for option in fields(PredictOptions)
    if option.name not in {other.name for other in fields(OutputOptions)}
]
"""Options that decide what is predicted, and not only what is written of it."""


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
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._readers = ThreadPoolExecutor(2, thread_name_prefix="read")
        self._writers = ThreadPoolExecutor(2, thread_name_prefix="write")
        self._at_work = asyncio.Semaphore(AT_WORK)
        self._kept: OrderedDict[str, Prediction] = OrderedDict()
        self._stages: dict[str, str] = {}
        self._seconds = 1.0
        self._folder = ScratchFolder()
        self._loading: asyncio.Task[None] | None = None
        self._tidying: Future[None] | None = None
        self._last_turn: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Begins to load the model, in a thread: the service answers meanwhile that it is loading."""
        self._loading = asyncio.create_task(self._load_pipeline())

    async def _load_pipeline(self) -> None:
        start = time.monotonic()
        try:
            self.pipeline = await self._in(self._device, self._load)
            warm_up_s = await self._in(self._device, self.pipeline.warm_up)
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
        for executor in (self._device, self._readers, self._writers):
            executor.shutdown(wait=True, cancel_futures=True)
        self._kept.clear()
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

    async def run(
        self, read: Read, options: PredictOptions, write: Write, *, suffix: str, request_id: str
    ) -> tuple[Path, Prediction]:
        """Makes a splat and its file, for a request that is admitted.

        Args:
            read: Gives the bytes.
            options: Of the prediction.
            write: Writes the file.
            suffix: Of the file's name.
            request_id: As it was admitted.

        Returns:
            The file, which is the caller's to delete, and the prediction.

        Raises:
            SharpError: As the pipeline's own stages.
        """
        async with self._at_work:
            try:
                return await self._made(read, options, write, suffix, request_id)
            except DeviceError as error:
                self._fail(error, "the device failed")
                raise
            finally:
                self._tidy()

    def _tidy(self) -> None:
        """Gives back memory, once for all requests that end meanwhile."""
        if (self._tidying is None or self._tidying.done()) and self.state != "stopping":
            self._tidying = self._writers.submit(give_back)

    async def _made(
        self, read: Read, options: PredictOptions, write: Write, suffix: str, request_id: str
    ) -> tuple[Path, Prediction]:
        start = time.monotonic()
        self._stages[request_id] = "decode"
        with self._turn() as turn:
            prediction, key = await self._in(self._readers, lambda: self._find_kept(read, options))
            if prediction is None:
                prediction = await self._predict(read, options, request_id, turn)
                self._keep(key, prediction)
            else:
                prediction = replace(prediction, timings={})
        self._stages[request_id] = "encode"
        path = self._folder.path / f"{secrets.token_hex(8)}{suffix}"
        chosen = prediction
        prediction = await self._in(
            self._writers, lambda: _written(chosen, options, write, path), undo=lambda: path.unlink(missing_ok=True)
        )
        self._seconds += 0.2 * (time.monotonic() - start - self._seconds)
        return path, prediction

    @contextmanager
    def _turn(self) -> Iterator[Turn]:
        """A turn at the device, in the order of asking; who leaves the block without having taken it passes it on."""
        before, mine = self._last_turn, asyncio.get_running_loop().create_future()
        self._last_turn = mine

        def pass_on(_: object = None) -> None:
            if not mine.done():
                mine.set_result(None)

        async def take() -> None:
            if before is not None:
                await asyncio.shield(before)
            pass_on()

        try:
            yield take
        finally:
            if before is None or before.done():
                pass_on()
            else:
                before.add_done_callback(pass_on)

    async def _predict(self, read: Read, options: PredictOptions, request_id: str, turn: Turn) -> Prediction:
        pipeline = self.pipeline
        assert pipeline is not None

        def decode() -> Decoded:
            image_bytes, depth_bytes = read()
            return pipeline.decode(image_bytes, options, depth_bytes=depth_bytes)

        decoded = await self._in(self._readers, decode)
        await turn()  # Readers may overtake each other. The next one comes after our work is with the executor.
        self._stages[request_id] = "predict"
        return await self._in(self._device, lambda: pipeline.predict(decoded))

    async def _in(
        self, executor: ThreadPoolExecutor, work: Callable[[], _T], *, undo: Callable[[], object] | None = None
    ) -> _T:
        """Runs work in a thread. One that is cancelled before its turn never runs; else what it did is undone."""
        future = executor.submit(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if undo is not None:
                future.add_done_callback(lambda _: undo())
            raise

    def _find_kept(self, read: Read, options: PredictOptions) -> tuple[Prediction | None, str]:
        """A prediction for the same bytes and options, which may differ in what is written of it."""
        assert self.pipeline is not None
        formats.check(options, viewer_dir=self.pipeline.settings.viewer_dir)
        if not self._settings.kept_predictions:
            return None, ""
        digest = hashlib.sha256(repr([getattr(options, name) for name in _OF_PREDICTION]).encode())
        for content in read():
            digest.update(b"-" if content is None else hashlib.sha256(content).digest())
        key = digest.hexdigest()
        return self._kept.get(key), key

    def _keep(self, key: str, prediction: Prediction) -> None:
        if self._settings.kept_predictions:
            self._kept[key] = prediction
            while len(self._kept) > self._settings.kept_predictions:
                self._kept.popitem(last=False)


def _written(prediction: Prediction, options: PredictOptions, write: Write, path: Path) -> Prediction:
    output = prediction.with_output(options)
    write(path, output)
    return output

"""The engine on this machine: the model loaded once, one picture at a time on the device, its neighbours beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from sharp_cog.dataset.engine import Job
from sharp_cog.dataset.make import decoded, written
from sharp_cog.dataset.pipe import Pipe
from sharp_cog.pipeline import SharpPipeline
from sharp_cog.prediction import Decoded, Prediction

NUM_WRITERS = 2
"""A splat takes longer to write in small formats than to predict on a good GPU."""

_Result = dict[str, Any] | Exception


class LocalEngine:
    """Makes splats in this process; the model is loaded when the first picture is there.

    While one picture is on the device, the next one is decoded and the last ones are written.

    Args:
        load: Gives the model.
        gaussians: The folder of splats.
        formats: Their formats.
        stopping: Set when nothing new is to be begun: what is not on the device yet is left out.
    """

    def __init__(
        self,
        load: Callable[[], SharpPipeline],
        gaussians: Path,
        formats: tuple[str, ...],
        *,
        stopping: threading.Event | None = None,
    ) -> None:
        self._load, self._gaussians, self._formats = load, gaussians, formats
        self._stopping = stopping or threading.Event()

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, _Result]]:
        """As `sharp_cog.dataset.engine.Engine.run`."""
        work = _Work(self._load, self._gaussians, self._formats, self._stopping)
        try:
            yield from work.results(jobs)
        finally:
            work.end()
        if work.failure is not None:
            raise work.failure


class _Work:
    """One call of `LocalEngine.run`: three steps, each in its thread, but for two who write.

    Attributes:
        failure: What ended a step, if anything did.
    """

    def __init__(
        self, load: Callable[[], SharpPipeline], gaussians: Path, formats: tuple[str, ...], stopping: threading.Event
    ) -> None:
        self.failure: Exception | None = None
        self._load, self._gaussians, self._formats, self._stopping = load, gaussians, formats, stopping
        self._decoded: Pipe[tuple[SharpPipeline, Job, Decoded]] = Pipe(1)
        self._predicted: Pipe[tuple[SharpPipeline, Job, Prediction]] = Pipe(1)
        self._results: Pipe[tuple[Job, _Result]] = Pipe(1)

    def results(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, _Result]]:
        """What became of jobs, in the order in which it is known."""
        self._started(lambda: self._decode(jobs))
        self._started(self._predict)
        writers = [self._started(self._write) for _ in range(NUM_WRITERS)]

        def close() -> None:
            for writer in writers:
                writer.join()
            self._results.close()

        self._started(close)
        while (result := self._results.take()) is not None:
            yield result

    def end(self) -> None:
        """Ends all steps, whether they are through or not."""
        for pipe in (self._decoded, self._predicted, self._results):
            pipe.break_off()

    def _started(self, work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - raised again by `run`
                self.failure = self.failure or error
                self.end()

        thread = threading.Thread(target=guarded, daemon=True, name="engine")
        thread.start()
        return thread

    def _decode(self, jobs: Iterable[Job]) -> None:
        pipeline: SharpPipeline | None = None
        for job in jobs:
            pipeline = pipeline or self._load()
            try:
                picture = decoded(pipeline, job.photo, job.image, self._formats)
            except Exception as error:  # noqa: BLE001 - one photograph that fails does not end the run
                is_taken = self._results.put((job, error))
            else:
                is_taken = self._decoded.put((pipeline, job, picture))
            if not is_taken:
                return
        self._decoded.close()

    def _predict(self) -> None:
        while (item := self._decoded.take()) is not None:
            pipeline, job, picture = item
            if self._stopping.is_set():
                continue
            try:
                prediction = pipeline.predict(picture)
            except Exception as error:  # noqa: BLE001
                is_taken = self._results.put((job, error))
            else:
                is_taken = self._predicted.put((pipeline, job, prediction))
            if not is_taken:
                return
        self._predicted.close()

    def _write(self) -> None:
        while (item := self._predicted.take()) is not None:
            pipeline, job, prediction = item
            result: _Result
            try:
                result = written(pipeline, job.photo, prediction, self._gaussians, self._formats)
            except Exception as error:  # noqa: BLE001
                result = error
            if not self._results.put((job, result)):
                return

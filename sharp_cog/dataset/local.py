"""The engine on this machine: the model is loaded once; decoding, prediction and writing overlap."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from sharp_cog.dataset.engine import Job
from sharp_cog.dataset.make import decoded, written
from sharp_cog.pipeline.conveyor import Conveyor, Stage
from sharp_cog.pipeline.pipeline import SharpPipeline

NUM_WRITERS = 2
"""Threads that write: small formats take longer to write than a good GPU takes to predict."""
MAX_UNDER_WAY = 4
"""Photographs that are decoded, predicted or written at once."""


class LocalEngine:
    """Makes splats in this process; see `sharp_cog.dataset.engine.Engine`.

    Args:
        load: Loads the model; called when the first photograph is there.
        gaussians: Folder of the splats.
        formats: Formats of the splats.
        stopping: Set when nothing new is to be begun: photographs that have not reached the device are left out.
    """

    def __init__(
        self,
        load: Callable[[], SharpPipeline],
        gaussians: Path,
        formats: tuple[str, ...],
        *,
        stopping: threading.Event | None = None,
    ) -> None:
        self._load, self._gaussians, self._formats = functools.cache(load), gaussians, formats
        self._stopping = stopping or threading.Event()

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, dict[str, Any] | Exception]]:
        """Make the splats of photographs as they come; see `Engine.run`."""

        def decode(job: Job) -> tuple[Job, Any]:
            pipeline = self._load()
            return _attempt(job, lambda: decoded(pipeline, job.photo, job.image, self._formats))

        def predict(item: tuple[Job, Any]) -> tuple[Job, Any]:
            job, request = item
            if self._stopping.is_set():
                raise CancelledError
            return item if isinstance(request, Exception) else _attempt(job, lambda: self._load().predict(request))

        def write(item: tuple[Job, Any]) -> tuple[Job, Any]:
            job, prediction = item
            if isinstance(prediction, Exception):
                return item
            return _attempt(job, lambda: written(self._load(), job.photo, prediction, self._gaussians, self._formats))

        stages = (Stage(decode, 1, "decode"), Stage(predict, 1, "device"), Stage(write, NUM_WRITERS, "write"))
        conveyor: Conveyor[tuple[Job, dict[str, Any] | Exception]] = Conveyor(*stages, max_items=MAX_UNDER_WAY)
        try:
            yield from conveyor.run(jobs, ordered=False)
        finally:
            conveyor.close()


def _attempt(job: Job, work: Callable[[], Any]) -> tuple[Job, Any]:
    """Return the job with the result of the work, or with its error: one photograph does not end the run."""
    try:
        return job, work()
    except Exception as error:  # noqa: BLE001 - reported as the job's result
        return job, error

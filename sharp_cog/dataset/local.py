"""The engine on this machine: the model is loaded once; decoding, prediction and writing overlap."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

from sharp_cog.dataset.engine import Job, Outcome, read_request, write_splats
from sharp_cog.pipeline.conveyor import Conveyor, Stage
from sharp_cog.pipeline.pipeline import SharpPipeline

NUM_WRITERS = 2
"""Threads that write: small formats take longer to write than a good GPU takes to predict."""
MAX_UNDER_WAY = 4
"""Jobs that are decoded, predicted or written at once."""


class LocalEngine:
    """Makes splats in this process; see `sharp_cog.dataset.engine.Engine`."""

    def __init__(
        self,
        load: Callable[[], SharpPipeline],
        folder: Path,
        formats: tuple[str, ...],
        *,
        stop_requested: threading.Event | None = None,
    ) -> None:
        """Create the engine; the model is loaded later.

        Args:
            load: Loads the model; called when the first job arrives.
            folder: Folder of the splats.
            formats: Formats of the splats.
            stop_requested: Once it is set, jobs that have not reached the device are dropped.
        """
        self._load, self._folder, self._formats = functools.cache(load), folder, formats
        self._stop_requested = stop_requested or threading.Event()

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Make splats of jobs as they arrive; see `Engine.run`.

        Raises:
            Exception: An error of `load`, or of the jobs' iterator.
        """

        def decode(job: Job) -> tuple[Job, Any]:
            # Outside of `_attempt`: a model that cannot be loaded ends the run, and not one photograph after the other.
            # This stage has one thread, so that no second one loads it meanwhile.
            pipeline = self._load()
            return _attempt(job, lambda: pipeline.decode(read_request(job, self._formats)))

        def predict(item: tuple[Job, Any]) -> tuple[Job, Any]:
            job, request = item
            # The item is left out of the results, and the next run finds its image on disk.
            if self._stop_requested.is_set():
                raise CancelledError
            return item if isinstance(request, Exception) else _attempt(job, lambda: self._load().predict(request))

        def write(item: tuple[Job, Any]) -> tuple[Job, Outcome]:
            job, prediction = item
            if isinstance(prediction, Exception):
                return item
            model = self._load().settings.model
            return _attempt(job, lambda: write_splats(prediction, self._folder, self._formats, model=model))

        stages = (Stage(decode, 1, "decode"), Stage(predict, 1, "device"), Stage(write, NUM_WRITERS, "write"))
        with Conveyor[tuple[Job, Outcome]](*stages) as conveyor:
            yield from conveyor.run(jobs, max_items=MAX_UNDER_WAY, ordered=False)


def _attempt(job: Job, work: Callable[[], Any]) -> tuple[Job, Any]:
    """Return the job with the result of the work, or with its error: one photograph does not end the run."""
    try:
        return job, work()
    except Exception as error:  # noqa: BLE001 - reported as the outcome of the job
        return job, error

"""The engine on this machine: the model loaded once, pictures one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from sharp_cog.dataset.engine import Job
from sharp_cog.dataset.make import make
from sharp_cog.pipeline import SharpPipeline


class LocalEngine:
    """Makes splats in this process; the model is loaded when the first picture is there."""

    def __init__(self, load: Callable[[], SharpPipeline], gaussians: Path, formats: tuple[str, ...]) -> None:
        self._load, self._gaussians, self._formats = load, gaussians, formats

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, dict[str, Any] | Exception]]:
        """As `sharp_cog.dataset.engine.Engine.run`."""
        pipeline: SharpPipeline | None = None
        for job in jobs:
            pipeline = pipeline or self._load()
            try:
                yield job, make(pipeline, job.photo, job.image, self._gaussians, self._formats)
            except Exception as error:  # noqa: BLE001 - one photograph that fails does not end the run
                yield job, error

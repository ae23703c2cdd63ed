"""A client of a dataset as a process of its own: everything as `sharp-cog dataset run` has it but the model.

    python -m tests.dataset.client SECONDS_A_PHOTO [SECONDS_THAT_ITS_CLOCK_IS_AHEAD]

Settings come from the environment. The splat of a photograph is a few Gaussians.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sharp_cog.config.dataset import DatasetSettings
from sharp_cog.config.settings import Settings, process_environment
from sharp_cog.dataset.build import build
from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.make import make
from sharp_cog.dataset.run import Job, Run
from tests.gated import Gated


class StubEngine:
    """The real making of files, by a pipeline that takes any bytes for a picture."""

    def __init__(self, gaussians: Path, formats: tuple[str, ...], seconds: float = 0.0) -> None:
        self.made: list[str] = []
        self.failures: dict[int, list[Exception]] = {}
        """What happens to the photographs of these places before they work."""
        self._gaussians, self._formats, self._seconds = gaussians, formats, seconds

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, dict[str, Any] | Exception]]:
        pipeline = Gated()
        for job in jobs:
            time.sleep(self._seconds)
            failures = self.failures.get(int(job.photo.id.removeprefix("photo")[:5])) if self.failures else None
            if failures:
                yield job, failures.pop()
                continue
            try:
                result = make(pipeline, job.photo, job.image, self._gaussians, self._formats)
            except Exception as error:  # noqa: BLE001
                yield job, error
            else:
                self.made.append(job.photo.id)
                yield job, result


def run_of(settings: DatasetSettings, seconds: float = 0.0) -> Run:
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    journal = Journal(settings.run_dir / "journal.sqlite")
    engine = StubEngine(settings.run_dir / "gaussians", settings.formats, seconds)
    return build(settings, journal, Settings(model="lift"), engine=engine)


if __name__ == "__main__":
    ahead, system_time = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0, time.time
    time.time = lambda: system_time() + ahead
    run_of(DatasetSettings.build(process_environment()), float(sys.argv[1])).work()

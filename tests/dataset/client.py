"""A client of a dataset: everything that `sharp-cog dataset run` has, except the model.

    python -m tests.dataset.client SECONDS_A_PHOTO [SECONDS_THAT_ITS_CLOCK_IS_AHEAD]

As a process of its own it takes its settings from the environment. The splat of a photograph is a few Gaussians.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from huggingface_hub import HfApi

from sharp_cog.config.dataset import DatasetSettings
from sharp_cog.config.settings import Settings, process_environment
from sharp_cog.dataset.build import build
from sharp_cog.dataset.engine import Job, Outcome, read_request, write_splats
from sharp_cog.dataset.hub import HubRepo
from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.run import Run
from tests.dataset.hub_server import HubServer
from tests.dataset.photographs import photographs
from tests.gated import Gated

REPO = "somebody/splats"
"""Name of the repository that tests publish to."""


class StubEngine:
    """Writes real files, by a pipeline that takes any bytes for an image."""

    def __init__(self, folder: Path, formats: tuple[str, ...], seconds: float = 0.0) -> None:
        self.made: list[str] = []
        self.failures: dict[int, list[Exception]] = {}
        """Errors of the photographs with these numbers, before they succeed."""
        self._folder, self._formats, self._seconds = folder, formats, seconds

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Outcome]]:
        pipeline = Gated()
        for job in jobs:
            time.sleep(self._seconds)
            failures = self.failures.get(int(job.photo.id.removeprefix("photo")[:5])) if self.failures else None
            if failures:
                yield job, failures.pop()
                continue
            try:
                prediction = pipeline.predict(read_request(job, self._formats))
                outcome = write_splats(prediction, self._folder, self._formats, model="lift")
            except Exception as error:  # noqa: BLE001
                yield job, error
            else:
                self.made.append(job.photo.id)
                yield job, outcome


def settings_of(tmp_path: Path, count: int = 5, **more: object) -> DatasetSettings:
    """Return settings of a run that turns a folder of small images into .ply and .spz."""
    folder = photographs(tmp_path / "in", count)
    values = {"input_dir": str(folder), "runs_dir": str(tmp_path / "runs"), "formats": ("ply", "spz")}
    return DatasetSettings(**{**values, **more})  # type: ignore[arg-type]


def run_of(settings: DatasetSettings, seconds: float = 0.0) -> Run:
    """Return a run with the stub engine, which takes so many seconds for a photograph."""
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    journal = Journal(settings.run_dir / "journal.sqlite")
    engine = StubEngine(settings.run_dir / "gaussians", settings.formats, seconds)
    return build(settings, journal, Settings(model="lift"), engine=engine)


def engine_of(run: Run) -> StubEngine:
    assert isinstance(run._engine, StubEngine)
    return run._engine


def journal_of(settings: DatasetSettings) -> Journal:
    return Journal(settings.run_dir / "journal.sqlite")


def repo_of(hub: HubServer, sleep: Callable[[float], None] = lambda seconds: time.sleep(seconds / 20)) -> HubRepo:
    """Return a client of the stub hub that waits little."""
    return HubRepo(REPO, "dataset", api=HfApi(endpoint=hub.url, token="hf_test"), sleep=sleep)


def wait_until(is_so: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for a condition, at most so many seconds."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.02)


if __name__ == "__main__":
    ahead, system_time = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0, time.time
    time.time = lambda: system_time() + ahead
    run_of(DatasetSettings.build(process_environment()), float(sys.argv[1])).work()

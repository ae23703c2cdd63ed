"""The engine on this machine: overlapping stages, failures, and stopping."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sharp_cog.dataset.engine import Job
from sharp_cog.dataset.local import LocalEngine
from sharp_cog.dataset.photo import Photo
from sharp_cog.errors import CheckpointMissingError, PredictionError
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.pipeline.request import Request
from tests.dataset.client import wait_until
from tests.gated import Gated


def jobs_of(folder: Path, count: int) -> list[Job]:
    """Return jobs whose images have 10, 11, 12 ... bytes, and whose splats have as many Gaussians."""
    folder.mkdir()
    jobs = []
    for number in range(count):
        path = folder / f"photo{number}.png"
        path.write_bytes(b"x" * (10 + number))
        jobs.append(Job(photo=Photo(id=f"photo{number}", where=str(path)), image=path))
    return jobs


def engine_of(tmp_path: Path, pipeline: Gated, **more: Any) -> LocalEngine:
    (tmp_path / "out").mkdir(exist_ok=True)
    return LocalEngine(lambda: pipeline, tmp_path / "out", ("ply", "spz"), **more)


def test_each_job_becomes_splats_and_the_model_is_loaded_once(tmp_path: Path) -> None:
    loaded = []

    def load() -> Gated:
        loaded.append(Gated())
        return loaded[-1]

    (tmp_path / "out").mkdir()
    engine = LocalEngine(load, tmp_path / "out", ("ply", "spz"))
    assert list(engine.run(iter([]))) == []
    assert loaded == [], "there was no job"
    jobs = jobs_of(tmp_path / "in", 7)
    outcomes = {job.photo.id: outcome for job, outcome in engine.run(iter(jobs))}
    assert len(loaded) == 1
    assert loaded[0].most_at_once == 1, "one prediction at a time"
    assert outcomes.keys() == {job.photo.id for job in jobs}
    for number in range(7):
        outcome = outcomes[f"photo{number}"]
        assert isinstance(outcome, dict)
        assert outcome["num_gaussians"] == 10 + number
        assert outcome["splats"] == {"ply": f"photo{number}.ply", "spz": f"photo{number}.spz"}
    assert len(list((tmp_path / "out").iterdir())) == 14


def test_decoding_and_writing_overlap_with_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All three stages wait for each other: if one of them ran alone, it would time out."""
    meeting = threading.Barrier(3)

    class Meets(Gated):
        def decode(self, request: Request) -> Request:
            if request.key == "photo2" and not request.is_decoded:
                meeting.wait(20)
            return super().decode(request)

        def predict(self, request: Request) -> Prediction:
            if request.key == "photo1":
                meeting.wait(20)
            return super().predict(request)

    write = Prediction.write

    def meets(self: Prediction, path: Path, *, output_format: str | None = None) -> Path:
        if path.name == "photo0.ply":
            meeting.wait(20)
        return write(self, path, output_format=output_format)

    monkeypatch.setattr(Prediction, "write", meets)
    outcomes = list(engine_of(tmp_path, Meets()).run(iter(jobs_of(tmp_path / "in", 4))))
    assert [type(outcome) for _, outcome in outcomes] == [dict] * 4


def test_errors_of_one_job_are_its_outcome(tmp_path: Path) -> None:
    class Fails(Gated):
        def predict(self, request: Request) -> Prediction:
            if request.key == "photo1":
                raise PredictionError("out of memory")
            return super().predict(request)

    jobs = jobs_of(tmp_path / "in", 4)
    jobs[2].image.unlink()
    (tmp_path / "out" / "photo3.ply").mkdir(parents=True)  # In the way of its splat.
    outcomes = {job.photo.id: outcome for job, outcome in engine_of(tmp_path, Fails()).run(iter(jobs))}
    kinds = {name: type(outcome).__name__ for name, outcome in outcomes.items()}
    assert kinds == {"photo0": "dict", "photo1": "PredictionError", "photo2": "ImageError", "photo3": "OutputError"}


def test_a_model_that_cannot_be_loaded_ends_the_engine(tmp_path: Path) -> None:
    def load() -> Gated:
        raise CheckpointMissingError("there is no checkpoint")

    with pytest.raises(CheckpointMissingError, match="there is no checkpoint"):
        list(LocalEngine(load, tmp_path, ("ply",)).run(iter(jobs_of(tmp_path / "in", 2))))


def test_an_error_of_the_jobs_iterator_is_raised(tmp_path: Path) -> None:
    def jobs() -> Iterator[Job]:
        yield from jobs_of(tmp_path / "in", 1)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(engine_of(tmp_path, Gated()).run(jobs()))


def test_few_jobs_are_taken_in_advance(tmp_path: Path) -> None:
    taken = []

    def jobs() -> Iterator[Job]:
        for job in jobs_of(tmp_path / "in", 30):
            taken.append(job)
            yield job

    outcomes = engine_of(tmp_path, Gated()).run(jobs())
    next(outcomes)
    time.sleep(0.3)
    assert len(taken) <= 10
    outcomes.close()  # type: ignore[attr-defined]
    time.sleep(0.1)
    num_taken = len(taken)
    time.sleep(0.2)
    assert len(taken) == num_taken, "a closed engine takes no more"


def test_jobs_that_have_not_reached_the_device_are_dropped_at_a_stop(tmp_path: Path) -> None:
    stop_requested = threading.Event()
    pipeline = Gated(is_open=False)
    engine = engine_of(tmp_path, pipeline, stop_requested=stop_requested)
    made: list[str] = []
    thread = threading.Thread(
        target=lambda: made.extend(job.photo.id for job, _ in engine.run(iter(jobs_of(tmp_path / "in", 6))))
    )
    thread.start()
    wait_until(lambda: pipeline.at_once > 0)
    stop_requested.set()
    pipeline.gate.set()
    thread.join(10)
    assert made == ["photo0"]

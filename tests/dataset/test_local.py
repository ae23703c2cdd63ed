"""The engine on this machine: what overlaps, what fails, what is left when it stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sharp_cog.config.options import PredictOptions
from sharp_cog.dataset.engine import Job
from sharp_cog.dataset.local import LocalEngine
from sharp_cog.dataset.photo import Photo
from sharp_cog.errors import CheckpointMissingError, PredictionError
from sharp_cog.pipeline.prediction import Decoded, Prediction
from tests.gated import Gated


def jobs_of(folder: Path, count: int) -> list[Job]:
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
    assert loaded == [], "there was no picture"
    jobs = jobs_of(tmp_path / "in", 7)
    results = {job.photo.id: result for job, result in engine.run(iter(jobs))}
    assert len(loaded) == 1
    assert loaded[0].most_at_once == 1, "one picture at a time on the device"
    assert results.keys() == {job.photo.id for job in jobs}
    for number in range(7):
        result = results[f"photo{number}"]
        assert isinstance(result, dict)
        assert result["num_gaussians"] == 10 + number
        assert result["splats"] == {"ply": f"photo{number}.ply", "spz": f"photo{number}.spz"}
    assert len(list((tmp_path / "out").iterdir())) == 14


def test_the_next_picture_is_decoded_and_the_last_splat_written_beside_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three meet: one after the other, none of them would go on."""
    meeting = threading.Barrier(3)

    class Meets(Gated):
        def decode(
            self, image_bytes: bytes, options: PredictOptions | None = None, *, depth_bytes: bytes | None = None
        ) -> Decoded:
            if len(image_bytes) == 12:
                meeting.wait(20)
            return super().decode(image_bytes, options, depth_bytes=depth_bytes)

        def predict(self, decoded: Decoded) -> Prediction:
            if decoded.source.camera.width == 11:
                meeting.wait(20)
            return super().predict(decoded)

    write = Prediction.write

    def meets(self: Prediction, path: Path) -> Path:
        if path.name == "photo0.ply":
            meeting.wait(20)
        return write(self, path)

    monkeypatch.setattr(Prediction, "write", meets)
    results = list(engine_of(tmp_path, Meets()).run(iter(jobs_of(tmp_path / "in", 4))))
    assert [type(result) for _, result in results] == [dict] * 4


def test_what_fails_is_given_back_and_stops_nobody(tmp_path: Path) -> None:
    class Fails(Gated):
        def predict(self, decoded: Decoded) -> Prediction:
            if decoded.source.camera.width == 11:
                raise PredictionError("out of memory")
            return super().predict(decoded)

    jobs = jobs_of(tmp_path / "in", 4)
    jobs[2].image.unlink()
    (tmp_path / "out" / "photo3.ply").mkdir(parents=True)  # Where its splat would go.
    results = {job.photo.id: result for job, result in engine_of(tmp_path, Fails()).run(iter(jobs))}
    kinds = {name: type(result).__name__ for name, result in results.items()}
    assert kinds == {"photo0": "dict", "photo1": "PredictionError", "photo2": "ImageError", "photo3": "OutputError"}


def test_a_model_that_is_not_there_is_raised(tmp_path: Path) -> None:
    def load() -> Gated:
        raise CheckpointMissingError("there is no checkpoint")

    with pytest.raises(CheckpointMissingError, match="there is no checkpoint"):
        list(LocalEngine(load, tmp_path, ("ply",)).run(iter(jobs_of(tmp_path / "in", 2))))


def test_jobs_that_cannot_be_had_are_raised(tmp_path: Path) -> None:
    def jobs() -> Iterator[Job]:
        yield from jobs_of(tmp_path / "in", 1)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(engine_of(tmp_path, Gated()).run(jobs()))


def test_few_jobs_are_taken_ahead(tmp_path: Path) -> None:
    taken = []

    def jobs() -> Iterator[Job]:
        for job in jobs_of(tmp_path / "in", 30):
            taken.append(job)
            yield job

    results = engine_of(tmp_path, Gated()).run(jobs())
    next(results)
    time.sleep(0.3)
    assert len(taken) <= 10
    results.close()  # type: ignore[attr-defined]
    time.sleep(0.1)
    num_taken = len(taken)
    time.sleep(0.2)
    assert len(taken) == num_taken, "who is closed takes no more"


def test_when_it_stops_what_is_not_on_the_device_is_left_out(tmp_path: Path) -> None:
    stopping = threading.Event()
    pipeline = Gated(is_open=False)
    engine = engine_of(tmp_path, pipeline, stopping=stopping)
    results: list[str] = []
    thread = threading.Thread(
        target=lambda: results.extend(job.photo.id for job, _ in engine.run(iter(jobs_of(tmp_path / "in", 6))))
    )
    thread.start()
    deadline = time.monotonic() + 10
    while not pipeline.at_once and time.monotonic() < deadline:
        time.sleep(0.01)
    stopping.set()
    pipeline.gate.set()
    thread.join(10)
    assert results == ["photo0"]

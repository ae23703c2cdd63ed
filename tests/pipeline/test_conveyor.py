"""Many pictures through one pipeline: order, overlap, bounds, errors, ends."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from sharp_cog import Settings, SharpPipeline
from sharp_cog.errors import DeviceError, ImageError, PredictionError
from sharp_cog.pipeline.conveyor import NUM_ENCODERS, NUM_READERS
from sharp_cog.pipeline.prediction import Decoded, Prediction
from sharp_cog.runtime.runner import SharpRunner
from sharp_cog.runtime.weights import Weights
from tests.gated import Gated, write
from tests.parity import state
from tests.pipeline.test_pipeline import picture

ROOT = Path(__file__).parents[2]
NUM_UNDER_WAY = NUM_READERS + 1 + NUM_ENCODERS + 1
"""Pictures in memory at once: being read, on the device, being encoded, and the one that is given."""


def refusing(*_: object) -> NoReturn:
    raise PredictionError("no network here")


def sizes(outcomes: Iterator[object]) -> list[int]:
    return [len(outcome.gaussians) for outcome in outcomes if isinstance(outcome, Prediction)]


def test_predictions_come_in_order() -> None:
    wanted = [7, 3, 11, 1, 5, 2, 9, 4, 8, 6]
    pipeline = Gated()
    assert sizes(pipeline.map(bytes(number) for number in wanted)) == wanted
    assert pipeline.predicted == wanted
    assert pipeline.most_at_once == 1, "the device takes one at a time"
    assert list(pipeline.map([])) == []


def test_what_becomes_of_each_is_made_beside_the_device(tmp_path: Path) -> None:
    threads = set()

    def encode(prediction: Prediction) -> Path:
        threads.add(threading.current_thread().name.partition("_")[0])
        path = tmp_path / f"{len(prediction.gaussians)}.txt"
        write(path, prediction)
        return path

    paths = [path for path in Gated().map((bytes(n) for n in (3, 1, 2)), encode=encode) if isinstance(path, Path)]
    assert [path.read_text() for path in paths] == ["3", "1", "2"]
    assert threads == {"encode"}


def test_reading_and_encoding_overlap_with_the_device() -> None:
    """While one is on the device, another is being read: else this would wait for ever."""
    both = threading.Barrier(2, timeout=20)

    class Meeting(Gated):
        def decode(self, image_bytes: bytes, *args: object, **kwargs: object) -> Decoded:
            if len(image_bytes) == 2:
                both.wait()
            return super().decode(image_bytes)

        def predict(self, decoded: Decoded) -> Prediction:
            if decoded.source.camera.width == 1:
                both.wait()
            return super().predict(decoded)

    assert sizes(Meeting().map([bytes(1), bytes(2)])) == [1, 2]


def test_pictures_are_taken_as_they_are_needed() -> None:
    taken = 0

    def pictures() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield bytes(3)

    outcomes = Gated().map(pictures())
    for number in range(1, 20):
        next(outcomes)
        assert taken <= number - 1 + NUM_UNDER_WAY


def test_a_bad_picture_is_an_error_in_its_place() -> None:
    settings = Settings(model="lift", device="cpu")
    pipeline = SharpPipeline(refusing, device=torch.device("cpu"), settings=settings)
    outcomes = list(pipeline.map([picture(), b"no picture", picture()]))
    assert [type(outcome) for outcome in outcomes] == [PredictionError, ImageError, PredictionError]


def test_a_device_that_failed_ends_it() -> None:
    pipeline = Gated()
    pipeline.failure = DeviceError("the device cpu failed")
    outcomes = pipeline.map(bytes(1) for _ in range(100))
    with pytest.raises(DeviceError):
        next(outcomes)
    assert len(pipeline.predicted) <= NUM_UNDER_WAY


def test_what_is_no_error_of_ours_is_raised() -> None:
    pipeline = Gated()
    pipeline.failure = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        list(pipeline.map([bytes(1)]))


def test_stopping_early_leaves_no_thread_behind() -> None:
    pipeline = Gated()
    outcomes = pipeline.map(bytes(1) for _ in range(100))
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]  # it is a generator
    deadline = time.monotonic() + 10
    while any(thread.name.startswith(("read_", "device_", "encode_")) for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(pipeline.predicted) <= NUM_UNDER_WAY + 1


def test_a_stream_gives_what_single_calls_give() -> None:
    cpu = torch.device("cpu")
    source = Weights(state=state("tiny"), is_folded=False)
    runner = SharpRunner(source, device=cpu, dtype=torch.float32)
    pipeline = SharpPipeline(runner, device=cpu, settings=Settings(device="cpu"))
    pictures = [picture(seed=1), picture(seed=2)]
    for outcome, image in zip(pipeline.map(pictures), pictures, strict=True):
        assert isinstance(outcome, Prediction)
        alone = pipeline(image).gaussians
        assert (outcome.gaussians.means == alone.means).all()
        assert (outcome.gaussians.colors_linear == alone.colors_linear).all()


@pytest.mark.slow
def test_the_benchmark_tells_how_long_the_device_waits(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.stream", "--model", "random-tiny", "--device", "cpu", "--num", "2"]
    subprocess.run([*command, "--json", str(tmp_path / "report.json")], check=True, timeout=600, cwd=ROOT)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["num"] == 2
    assert report["busy_s"] > 0
    assert 0 <= report["idle_share"] < 1

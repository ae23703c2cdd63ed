"""Devices that run out of memory or fail, at any operation, behind every frontend.

`tests/gpu/test_faults.py` has the same for real devices.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from sharp_cog import PredictOptions, SharpPipeline, formats
from sharp_cog.dataset.engine import Job
from sharp_cog.dataset.local import LocalEngine
from sharp_cog.dataset.photo import Photo
from sharp_cog.errors import DeviceError, PredictionError
from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.model.pyramid import NUM_TILES
from sharp_cog.pipeline.request import Request
from sharp_cog.runtime.runner import SharpRunner
from sharp_cog.runtime.weights import Weights
from sharp_cog.serving import runpod
from tests.faults.failing_device import FAILURES, SHORTAGES, FailingDevice, OnFailingDevice, small_pipeline
from tests.faults.frontends import FRONTENDS, OPTIONS
from tests.images import npy as depth_map
from tests.images import png as picture
from tests.parity import small_input, small_state


@pytest.fixture
def pipeline() -> OnFailingDevice:
    return OnFailingDevice(small_pipeline())


def bytes_of(pipeline: SharpPipeline, folder: Path) -> bytes:
    prediction = pipeline(picture(), PredictOptions(**OPTIONS), depth_bytes=depth_map())  # type: ignore[arg-type]
    return prediction.write(folder / "splat.ply").read_bytes()


def num_operations(pipeline: OnFailingDevice, folder: Path) -> int:
    pipeline.failing.num_operations = 0
    bytes_of(pipeline, folder)
    return pipeline.failing.num_operations


@pytest.mark.parametrize("how", SHORTAGES)
def test_a_shortage_of_memory_is_reported_and_the_next_prediction_works(
    how: str, pipeline: OnFailingDevice, tmp_path: Path
) -> None:
    expected = bytes_of(pipeline, tmp_path)
    pipeline.failing.fail(3, SHORTAGES[how])
    with pytest.raises(PredictionError, match="ran out of memory: close other programs") as caught:
        bytes_of(pipeline, tmp_path)
    assert not isinstance(caught.value, DeviceError)
    assert bytes_of(pipeline, tmp_path) == expected


@pytest.mark.parametrize("how", FAILURES)
def test_a_failed_device_is_reported_by_every_prediction(how: str, pipeline: OnFailingDevice, tmp_path: Path) -> None:
    pipeline.failing.fail(3, FAILURES[how], is_sticky=True)
    for _ in range(2):
        with pytest.raises(DeviceError, match="restart the process"):
            bytes_of(pipeline, tmp_path)


def test_other_errors_are_not_translated(pipeline: OnFailingDevice, tmp_path: Path) -> None:
    pipeline.failing.fail(3, lambda: RuntimeError("shape '[2]' is invalid for input of size 3"))
    with pytest.raises(RuntimeError, match="is invalid for input"):
        bytes_of(pipeline, tmp_path)


def check_every(pipeline: OnFailingDevice, folder: Path, step: int) -> None:
    expected, count = bytes_of(pipeline, folder), num_operations(pipeline, folder)
    assert count > 20
    for number in range(0, count, step):
        pipeline.failing.fail(number, SHORTAGES["torch"])
        with pytest.raises(PredictionError, match="ran out of memory"):
            bytes_of(pipeline, folder)
        pipeline.failing.repair()
    assert bytes_of(pipeline, folder) == expected


def test_memory_may_run_out_at_some_operations(pipeline: OnFailingDevice, tmp_path: Path) -> None:
    check_every(pipeline, tmp_path, num_operations(pipeline, tmp_path) // 3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_may_run_out_at_any_of_two_hundred_operations(pipeline: OnFailingDevice, tmp_path: Path) -> None:
    check_every(pipeline, tmp_path, num_operations(pipeline, tmp_path) // 200)


def test_the_network_continues_in_smaller_parts_wherever_memory_runs_out() -> None:
    runner = SharpRunner(
        Weights(state=small_state(), is_folded=False),
        device=torch.device("cpu"),
        dtype=torch.float32,
        keeps_encoding=False,
    )
    encoder, failing = runner.model.monodepth_model.monodepth_predictor.encoder, FailingDevice()
    model_input = small_input()

    def predicted() -> NDCGaussians:
        encoder.num_tiles_at_once = NUM_TILES
        with torch.inference_mode(), failing:
            return runner.predict(model_input).gaussians

    expected = predicted()
    count = failing.num_operations
    for number, step in enumerate(range(0, count, count // 5)):
        failing.fail(step, SHORTAGES["torch"])
        found = predicted()
        failing.repair()
        assert runner.counters.memory_shortages == number + 1
        assert encoder.num_tiles_at_once == 12
        torch.testing.assert_close(found.means, expected.means, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system cannot limit the memory of a process")
def test_memory_that_the_system_refuses_is_a_shortage(tmp_path: Path) -> None:
    pipeline = small_pipeline(1536)
    expected = bytes_of(pipeline, tmp_path)
    request = pipeline.decode(Request(image=picture(), depth=depth_map()))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken: list[torch.Tensor] = []
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms, hard))
    try:
        with contextlib.suppress(RuntimeError):  # Takes the memory that the process keeps for itself, too.
            while True:
                taken.append(torch.empty(4 << 20, dtype=torch.uint8))
        with pytest.raises(PredictionError, match="the device cpu ran out of memory: close other programs"):
            pipeline.predict(request)
    finally:
        taken.clear()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert bytes_of(pipeline, tmp_path) == expected


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("where", ["predicted", "written"])
def test_every_frontend_survives_a_shortage_and_reports_a_failure(
    frontend: str, where: str, pipeline: OnFailingDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runpod, "READY", tmp_path / "ready")
    to_output_frame = formats.to_output_frame

    def fail(error: Callable[[], Exception], *, is_sticky: bool) -> None:
        def raises(*arguments: object, **more: object) -> object:
            raise error()

        if where == "predicted":
            pipeline.failing.fail(5, error, is_sticky=is_sticky)
        else:  # Writers run in other threads, which the simulated device does not reach.
            monkeypatch.setattr(formats, "to_output_frame", raises)

    with FRONTENDS[frontend](pipeline, tmp_path) as opened:
        expected = opened.ask()
        assert isinstance(expected, bytes)
        fail(SHORTAGES["torch"], is_sticky=False)
        assert opened.ask() == "prediction_failed"
        monkeypatch.setattr(formats, "to_output_frame", to_output_frame)
        pipeline.failing.repair()
        assert opened.is_healthy()
        assert opened.ask() == expected, "the next request works, with the same bytes"
        fail(FAILURES["assert"], is_sticky=True)
        assert opened.ask() == "device_failed"
        assert not opened.is_healthy(), "so that the platform restarts the process"
        assert opened.ask() in ("device_failed", "busy")
        assert not opened.is_healthy()


def test_a_dataset_run_survives_a_shortage_and_reports_a_failure(pipeline: OnFailingDevice, tmp_path: Path) -> None:
    jobs = []
    for number in range(3):
        image, depth_path = tmp_path / f"{number}.png", tmp_path / f"{number}.npy"
        image.write_bytes(picture())
        np.save(depth_path, np.full((80, 120), 2.0, np.float32))
        jobs.append(Job(photo=Photo(id=str(number), where="", depth=str(depth_path)), image=image))
    (tmp_path / "splats").mkdir()

    def outcomes() -> dict[str, Any]:
        engine = LocalEngine(lambda: pipeline, tmp_path / "splats", ("splat",))
        return {job.photo.id: result for job, result in engine.run(jobs)}

    pipeline.failing.fail(3, SHORTAGES["torch"])
    found = outcomes()
    assert sorted(type(result).__name__ for result in found.values()) == ["PredictionError", "dict", "dict"]
    pipeline.failing.fail(3, FAILURES["assert"], is_sticky=True)
    assert all(isinstance(result, DeviceError) for result in outcomes().values())
    assert {path.suffix for path in (tmp_path / "splats").iterdir()} == {".splat"}

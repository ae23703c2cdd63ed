"""A real GPU that is full, or fails: `scripts/test -m gpu`.

`tests/faults/test_failing_device.py` has the same for simulated devices.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from sharp_cog import PredictOptions, Settings, SharpPipeline
from sharp_cog.errors import DeviceError, PredictionError
from sharp_cog.runtime.runner import SharpRunner
from sharp_cog.runtime.weights import Weights
from tests.images import png
from tests.parity import state

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1800)]

CUDA = torch.device("cuda")
ROOT = Path(__file__).parents[2]
MB = 1 << 20
_T = TypeVar("_T")

# A process of its own, because its CUDA context becomes unusable. It prints a line with the outcome of each step.
FAILS = """
import requests, sys, torch
from pathlib import Path
from sharp_cog import PredictOptions, Settings, SharpPipeline
from sharp_cog.errors import DeviceError
from sharp_cog.runtime.runner import SharpRunner
from sharp_cog.serving import runpod
from sharp_cog.config.services import ServiceSettings
from sharp_cog.runtime.weights import Weights
from tests.service import serving
from tests.parity import state

cuda = torch.device("cuda")
runner = SharpRunner(Weights(state=state("full"), is_folded=False), device=cuda, dtype=torch.float16)
pipeline = SharpPipeline(runner, device=cuda, settings=Settings(device="cuda"))
runpod.READY = Path(sys.argv[1])
runpod.READY.touch()
handler = runpod.create_handler(pipeline, ServiceSettings())
with serving(lambda: pipeline) as service:
    def ask():
        answer = requests.post(
            f"{service.url}/predict/splat", files={"file": png()}, data={"max_gaussians": 100}, timeout=600
        )
        return answer.json()["code"] if answer.status_code != 200 else "ok"

    print("asked:", ask(), flush=True)
    kept = pipeline(png(seed=1), PredictOptions(max_gaussians=100))
    # A kernel that finds an index out of range: an assertion on the device, which is reported later.
    torch.zeros(1, device=cuda)[torch.full((1,), 5, device=cuda)]
    for name, work in {
        "predicted": lambda: pipeline(png(seed=2)),
        "again": lambda: pipeline(png(seed=2)),
        "pruned": lambda: kept.with_options(PredictOptions(max_gaussians=10)).gaussians,
        "written": lambda: kept.write(Path(sys.argv[1]).with_name("kept.ply")),
    }.items():
        try:
            work()
            print(f"{name}: nothing", flush=True)
        except DeviceError as error:
            print(f"{name}: {error.code}", flush=True)
    # Another image than before, whose splat is kept.
    answer = requests.post(f"{service.url}/predict/splat", files={"file": png(seed=3)}, timeout=600)
    print("asked after:", answer.json()["code"], flush=True)
    health = requests.get(f"{service.url}/health", timeout=10)
    print("health:", health.status_code, health.json().get("code"), flush=True)
    import base64
    answer = handler({"id": "job", "input": {"image": base64.b64encode(png(seed=4)).decode()}})
    print("runpod:", answer["code"], answer.get("refresh_worker"), runpod.READY.exists(), flush=True)
sys.stdout.flush()
import os
os._exit(0)  # torch's own clean-up would fail too.
"""


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


def loaded(*, uses_graphs: bool = True) -> SharpPipeline:
    runner = SharpRunner(
        Weights(state=state("full"), is_folded=False), device=CUDA, dtype=torch.float16, uses_graphs=uses_graphs
    )
    return SharpPipeline(runner, device=CUDA, settings=Settings(device="cuda"))


def outcome(work: Callable[[], _T]) -> _T | PredictionError:
    """Return the result, or the error if memory runs out."""
    try:
        return work()
    except DeviceError:
        raise
    except PredictionError as error:
        return error


def filled(left_bytes: int) -> list[torch.Tensor]:
    """Allocate the memory of the GPU except `left_bytes`, as another program would."""
    torch.cuda.empty_cache()
    taken = []
    for block in (1 << 30, 64 * MB, 2 * MB):
        while torch.cuda.mem_get_info()[0] > left_bytes + block:
            try:
                taken.append(torch.empty(block, dtype=torch.uint8, device=CUDA))
            except torch.OutOfMemoryError:  # Free memory is not always in one piece.
                break
    return taken


@pytest.mark.parametrize("uses_graphs", [True, False])
@pytest.mark.parametrize("left_mb", [0, 64, 256, 1024])
def test_a_full_gpu_is_an_error_or_handled_and_the_next_prediction_works(
    left_mb: int, uses_graphs: bool, tmp_path: Path
) -> None:
    pipeline, options = loaded(uses_graphs=uses_graphs), PredictOptions(max_gaussians=1000)
    expected = pipeline(png(), options).write(tmp_path / "before.ply").read_bytes()
    taken = filled(left_mb * MB)
    found = outcome(lambda: pipeline(png(seed=1), options))
    if isinstance(found, PredictionError):
        assert "ran out of memory: close other programs" in str(found)
    else:
        assert found.gaussians.means.isfinite().all()
        assert left_mb > 0, "the image alone takes 28 MB"
    taken.clear()
    torch.cuda.empty_cache()
    after = pipeline(png(), options)
    assert len(after.gaussians) == 1000
    # In smaller parts, or without graphs, sums may have another order.
    if pipeline.counters.memory_shortages == pipeline.counters.graph_failures == 0:
        assert after.write(tmp_path / "after.ply").read_bytes() == expected
    assert torch.equal(pipeline(png(), options).gaussians.means, after.gaussians.means)


def test_writing_with_a_full_gpu_is_an_error_or_works_and_works_when_there_is_room(tmp_path: Path) -> None:
    prediction = loaded()(png())
    expected = prediction.write(tmp_path / "before.ply").read_bytes()
    taken = filled(0)
    found = outcome(lambda: prediction.write(tmp_path / "full.ply"))
    # The few megabytes of a part may have been free.
    assert (tmp_path / "full.ply").exists() == isinstance(found, Path)
    taken.clear()
    torch.cuda.empty_cache()
    assert prediction.write(tmp_path / "after.ply").read_bytes() == expected
    assert not list(tmp_path.glob(".*"))


def test_a_failed_device_is_reported_by_every_frontend_until_the_process_restarts(tmp_path: Path) -> None:
    for _ in range(2):  # The second process works too: the GPU itself is intact.
        result = subprocess.run(
            [sys.executable, "-c", FAILS, str(tmp_path / "ready")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=800,
        )
        said = dict(line.split(": ", 1) for line in result.stdout.splitlines() if ": " in line)
        assert said == {
            "asked": "ok",
            "predicted": "device_failed",
            "again": "device_failed",
            "pruned": "device_failed",
            "written": "device_failed",
            "asked after": "device_failed",
            "health": "503 device_failed",
            "runpod": "device_failed True False",
        }, result.stderr[-3000:]
        assert not list(tmp_path.glob("*.ply"))
        assert not list(tmp_path.glob(".*"))

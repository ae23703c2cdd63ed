"""Equal bytes for equal requests: one after another, at once, in another process, at another frontend.

`SharpPipeline` names the conditions.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import torch

from sharp_cog import Prediction, PredictOptions, Settings, SharpPipeline
from sharp_cog.runtime.runner import SharpRunner
from sharp_cog.runtime.weights import Weights
from tests.images import npy, png
from tests.parity import small_state
from tests.service import serving

ROOT = Path(__file__).parents[2]
SIZES = [(96, 64), (64, 96), (80, 80), (120, 64)]
FORMATS = ["ply", "spz", "splat", "compressed_ply"]
NUM_CLIENTS = 8


def asked(number: int) -> tuple[bytes, PredictOptions, bytes]:
    """Return one of four images, each with its own format and depth map."""
    width, height = SIZES[number % 4]
    options = PredictOptions(output_format=FORMATS[number % 4], max_gaussians=3000 + number % 4)
    return png(width, height), options, npy(width, height)


def digest(prediction: Prediction, folder: Path) -> str:
    path = prediction.write(folder / f"{os.getpid()}-{id(prediction)}")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def alone(pipeline: SharpPipeline, number: int, folder: Path) -> str:
    image, options, depth = asked(number)
    return digest(pipeline(image, options, depth=depth), folder)


def lift() -> SharpPipeline:
    return SharpPipeline.load(Settings(model="lift", device="cpu"))


def small(dtype: torch.dtype) -> SharpPipeline:
    """Return a pipeline with the small network, which keeps the last image's encoding by default."""
    runner = SharpRunner(
        Weights(state=small_state(), is_folded=False), device=torch.device("cpu"), dtype=dtype, keeps_encoding=True
    )
    return SharpPipeline(runner, device=torch.device("cpu"), settings=Settings(device="cpu"))


def assert_the_same_at_once(pipeline: SharpPipeline, folder: Path, *, num_requests: int) -> None:
    """Predict four images one after another, and then many times from eight threads."""
    expected = [alone(pipeline, number, folder) for number in range(4)]
    assert len(set(expected)) == 4
    with ThreadPoolExecutor(NUM_CLIENTS) as clients:
        at_once = list(clients.map(lambda number: alone(pipeline, number, folder), range(num_requests)))
    assert at_once == [expected[number % 4] for number in range(num_requests)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_lift_gives_eight_threads_the_same_bytes(tmp_path: Path) -> None:
    assert_the_same_at_once(lift(), tmp_path, num_requests=16)


@pytest.mark.slow
def test_eight_clients_of_the_service_get_the_same_bytes_as_python(tmp_path: Path) -> None:
    """With different images and formats, and with predictions that were kept for other clients."""
    pipeline = lift()
    expected = [alone(pipeline, number, tmp_path) for number in range(4)]

    def request(url: str, number: int) -> str:
        image, options, depth = asked(number)
        answer = requests.post(
            f"{url}/predict/{options.output_format}",
            files={"file": image, "depth": depth},
            data={"max_gaussians": options.max_gaussians},
            timeout=120,
        )
        assert answer.status_code == 200, answer.text
        return hashlib.sha256(answer.content).hexdigest()

    with serving(lambda: pipeline) as service, ThreadPoolExecutor(NUM_CLIENTS) as clients:
        found = list(clients.map(lambda number: request(service.url, number), range(NUM_CLIENTS)))
    assert found == expected * 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_network_gives_eight_threads_and_a_stream_the_same_bytes(dtype: torch.dtype, tmp_path: Path) -> None:
    pipeline = small(dtype)
    assert_the_same_at_once(pipeline, tmp_path, num_requests=16)
    images = [png(*size) for size in SIZES]
    options = PredictOptions(max_gaussians=3000)
    streamed = list(pipeline.map(images * 2, options, encode=lambda made: digest(made, tmp_path)))
    single = [digest(pipeline(image, options), tmp_path) for image in images]
    assert streamed == single * 2


PROGRAM = """
import sys
from pathlib import Path
import torch
from tests.e2e.test_determinism import alone, lift, small
make = {"lift": lift, "float32": lambda: small(torch.float32), "bfloat16": lambda: small(torch.bfloat16)}[sys.argv[1]]
pipeline = make()
print(torch.get_num_threads(), *[alone(pipeline, number, Path(sys.argv[2])) for number in (0, 1)])
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("model", ["lift", "float32", "bfloat16"])
@pytest.mark.parametrize("num_threads", [1, 2])
def test_two_processes_give_the_same_bytes(model: str, num_threads: int, tmp_path: Path) -> None:
    """With the same number of threads; results may differ between numbers of threads."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads)}
    command = [sys.executable, "-c", PROGRAM, model, str(tmp_path)]
    outputs = [
        subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0][0] == str(num_threads)
    assert len(set(outputs[0])) == 3

"""The worker behind RunPod's own package, which serves the API on this machine."""

from __future__ import annotations

import base64
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import runpod
import torch
from plyfile import PlyData

from sharp_cog import PredictOptions, Settings, SharpPipeline
from tests.parity import small_state
from tests.website import Site, says

ROOT = Path(__file__).parents[2]
ROOM, DEPTH = ((ROOT / "examples" / name).read_bytes() for name in ("room.jpg", "room.depth.png"))


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A worker with the small network: its URL and its log."""
    folder = tmp_path_factory.mktemp("runpod")
    torch.save(small_state(), folder / "small.pt")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "sharp_cog.serving.runpod", "--rp_serve_api", "--rp_api_port", str(port)]
    settings = {"CHECKPOINT": str(folder / "small.pt"), "DEVICE": "cpu", "PRECISION": "float32"}
    environment = {**os.environ, "TMPDIR": str(folder), **{f"SHARP_{name}": value for name, value in settings.items()}}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            try:
                requests.get(url, timeout=5)
                break
            except requests.ConnectionError:
                time.sleep(0.1)
        assert (folder / "sharp_cog.ready").exists(), "the container's health check looks for it"
        yield url, folder / "log"
    finally:
        process.terminate()
        process.wait(30)


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def run(url: str, **values: object) -> dict[str, Any]:
    answer = requests.post(f"{url}/runsync", json={"input": values}, timeout=120)
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def test_an_image_becomes_the_splat_that_the_pipeline_makes(worker: tuple[str, Path], tmp_path: Path) -> None:
    answer = run(worker[0], image=b64(ROOM), depth=b64(DEPTH), max_gaussians=20_000)
    assert answer["status"] == "COMPLETED"
    output = answer["output"]
    assert output["status"] == "success"
    assert output["num_gaussians"] == 20_000
    assert output["image_size"] == {"width": 1200, "height": 800}
    settings = Settings(checkpoint=worker[1].with_name("small.pt"), device="cpu", precision="float32")
    own = SharpPipeline.load(settings)(ROOM, PredictOptions(max_gaussians=20_000), depth=DEPTH)
    assert base64.b64decode(output["ply"]) == own.write(tmp_path / "own.ply").read_bytes()


@pytest.fixture
def endpoint(worker: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> runpod.Endpoint:
    """RunPod's own client of the worker's API on this machine."""
    # The client asks at `BASE/ENDPOINT/runsync`, and the API has no endpoint in its paths.
    monkeypatch.setattr(runpod, "endpoint_url_base", "http:/")
    return runpod.Endpoint(worker[0].removeprefix("http://"), api_key="none")


def test_runpods_own_client_gets_a_whole_splat_without_naming_a_format(endpoint: runpod.Endpoint) -> None:
    output = endpoint.run_sync({"input": {"image": b64(ROOM), "depth": b64(DEPTH)}}, timeout=120)
    assert output["status"] == "success"
    vertices = PlyData.read(io.BytesIO(base64.b64decode(output["ply"])))["vertex"]
    assert vertices.count == output["num_gaussians"] == 131_072
    assert "simplified_from" not in output
    assert output["image_size"] == {"width": 1200, "height": 800}
    assert output["focal_length_px"] > 0


def test_a_webhook_at_a_private_address_is_not_called(worker: tuple[str, Path], site: Site) -> None:
    values = {"image": b64(ROOM), "depth": b64(DEPTH), "max_gaussians": 10}
    body = {"input": values, "webhook": site.url("/done", says(b""))}
    answer = requests.post(f"{worker[0]}/runsync", json=body, timeout=120).json()
    assert answer["status"] == "COMPLETED"
    deadline = time.monotonic() + 20
    while "no webhook is called" not in worker[1].read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert site.seen == []


def test_the_documented_client_gets_a_splat(worker: tuple[str, Path], tmp_path: Path) -> None:
    """Run the client of docs/runpod.md against this worker."""
    page = (ROOT / "docs" / "runpod.md").read_text(encoding="utf-8")
    program = page.partition("<!-- runpod client -->\n```python\n")[2].partition("```")[0]
    assert "http://localhost:8000" in program
    program = program.replace("http://localhost:8000", worker[0])
    program = program.replace('"photo.jpg"', repr(str(ROOT / "examples" / "room.jpg")))
    program = program.replace('"format": "spz"', f'"format": "spz", "depth": {b64(DEPTH)!r}')
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, timeout=120)
    assert (tmp_path / "photo.spz").read_bytes().startswith(b"\x1f\x8b")


def test_the_documented_program_with_runpods_own_client_gets_a_splat(worker: tuple[str, Path], tmp_path: Path) -> None:
    page = (ROOT / "docs" / "runpod.md").read_text(encoding="utf-8")
    program = page.partition("<!-- runpod's own client -->\n```python\n")[2].partition("```")[0]
    assert '"ENDPOINT"' in program
    program = program.replace("ENDPOINT", worker[0].removeprefix("http://"))
    program = program.replace('"photo.jpg"', repr(str(ROOT / "examples" / "room.jpg")))
    environment = {**os.environ, "RUNPOD_ENDPOINT_BASE_URL": "http:/"}
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, timeout=120, env=environment)
    assert PlyData.read(tmp_path / "photo.ply")["vertex"].count == 131_072


def test_a_broken_image_fails_the_job(worker: tuple[str, Path]) -> None:
    answer = run(worker[0], image=b64(b"text"))
    assert answer["status"] == "FAILED"
    assert answer["error"].startswith("the bytes are not an image")
    assert "Traceback" not in str(answer)
    answer = run(worker[0], images=[{"image": b64(b"text")}])
    assert answer["status"] == "FAILED"
    log = worker[1].read_text()
    assert b64(ROOM)[:100] not in log, "no image goes into the log"


def test_the_result_of_an_asynchronous_job_is_in_its_status(worker: tuple[str, Path]) -> None:
    values = {"image": b64(ROOM), "depth": b64(DEPTH), "format": "sog", "max_gaussians": 1000}
    job = requests.post(f"{worker[0]}/run", json={"input": values}, timeout=30).json()
    answer = requests.post(f"{worker[0]}/status/{job['id']}", timeout=60).json()
    assert answer["status"] == "COMPLETED"
    assert base64.b64decode(answer["output"]["sog"]).startswith(b"PK")

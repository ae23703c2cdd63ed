"""The Cog predictor behind Cog's real server, started by `scripts/serve` and driven over HTTP."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cog
import numpy as np
import pytest
import requests
import torch
from PIL import Image
from plyfile import PlyData

import predict
from sharp_cog import PredictOptions, Settings, SharpPipeline
from sharp_cog.formats import FORMATS
from tests.data.parity import synthetic
from tests.e2e.cog_server import (
    ROOT,
    CogServer,
    Outside,
    content_of_data_uri,
    data_uri,
    started_cog_server,
    started_outside,
)
from tests.parity import small_state

NUM_GAUSSIANS = 2 * 256 * 256
"""Number of Gaussians of the small network."""
STAGES = ("decode", "preprocess", "network", "unproject", "write")


def encoded(pixels: np.ndarray, image_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


PHOTOGRAPH = encoded(synthetic.photograph(480, 320), "JPEG")
DEPTH = encoded((1000 / np.linspace(0.2, 1, 480 * 320)).reshape(320, 480).astype(np.uint16), "PNG")  # A floor in mm.
INPUTS = {"image": data_uri(PHOTOGRAPH, "image/jpeg"), "depth": data_uri(DEPTH, "image/png")}


@pytest.fixture(scope="module")
def outside() -> Iterator[Outside]:
    with started_outside() as outside:
        yield outside


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the small network."""
    path = tmp_path_factory.mktemp("checkpoint") / "small.pt"
    torch.save(small_state(), path)
    return path


@pytest.fixture(scope="module")
def running(checkpoint: Path, outside: Outside, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CogServer]:
    """The predictor with the small network, which uploads its splats to `outside`."""
    # With this threshold freed blocks of 128 kB or more go back to the system at once, so that resident memory is the
    # memory in use. Temporary arrays of a chunk of Gaussians have 512 kB. In the heap, each thread that Cog moves a
    # prediction to would leave another 50 MB of holes behind.
    environment = {"MALLOC_MMAP_THRESHOLD_": str(1 << 17), "PYTHONWARNINGS": "default"}
    environment |= {"SHARP_CHECKPOINT": str(checkpoint), "SHARP_PRECISION": "float32"}
    arguments = ("--upload-url", f"{outside.url}/splats/")
    with started_cog_server(tmp_path_factory.mktemp("server"), *arguments, **environment) as server:
        server.wait_until_ready()
        yield server


@pytest.fixture
def server(running: CogServer, outside: Outside) -> Iterator[CogServer]:
    """The running server without earlier uploads; its log during the test is shown if the test fails."""
    outside.uploads.clear()
    running.wait_until_ready()
    start = running.log_path.stat().st_size
    yield running
    print(running.log(start))


@pytest.fixture(scope="module")
def settings(checkpoint: Path) -> Settings:
    """The settings of the server."""
    return Settings(checkpoint=checkpoint, device="cpu", precision="float32")


def directly_predicted(settings: Settings, options: PredictOptions, folder: Path) -> Path:
    """Return the file that the pipeline itself writes, without a server."""
    return SharpPipeline.load(settings)(PHOTOGRAPH, options, depth=DEPTH).write(folder / "direct")


def assert_metrics(metrics: dict[str, Any], *, focal_length_px: float) -> None:
    assert metrics["num_gaussians"] == NUM_GAUSSIANS
    assert metrics["focal_length_px"] == pytest.approx(focal_length_px, rel=1e-6)
    assert all(metrics[f"{stage}_seconds"] > 0 for stage in STAGES)


def test_an_uploaded_file_becomes_the_splat_that_the_pipeline_writes(
    server: CogServer, outside: Outside, settings: Settings, tmp_path: Path
) -> None:
    answer = server.predict({**INPUTS, "focal_length_px": 400})
    assert answer["status"] == "succeeded", answer
    expected = directly_predicted(settings, PredictOptions(focal_length_px=400.0), tmp_path)
    (upload,) = outside.uploads
    assert (upload.path, upload.num_bytes) == ("/splats/splat.ply", expected.stat().st_size)
    assert upload.sha256 == hashlib.sha256(expected.read_bytes()).hexdigest()
    assert answer["output"] == f"{outside.url}/splats/splat.ply"
    assert PlyData.read(expected)["vertex"].count == NUM_GAUSSIANS
    assert_metrics(answer["metrics"], focal_length_px=400)
    assert "Gaussians" in answer["logs"]


@pytest.mark.slow
def test_without_an_upload_url_the_splat_is_in_the_answer(checkpoint: Path, settings: Settings, tmp_path: Path) -> None:
    asked = {"focal_length_mm": 28, "output_format": "apple_ply"}
    (tmp_path / "server").mkdir()
    with started_cog_server(tmp_path / "server", SHARP_CHECKPOINT=str(checkpoint), SHARP_PRECISION="float32") as server:
        answer = server.predict({**INPUTS, **asked})
    assert answer["status"] == "succeeded", answer
    expected = directly_predicted(settings, PredictOptions.from_mapping(asked), tmp_path)
    assert content_of_data_uri(answer["output"]) == expected.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked",
    [
        *({"output_format": name, "min_opacity": 0.2} for name in ("compressed_ply", "splat", "spz", "sog", "glb")),
        {"depth_mode": "fixed", "back_surface_factor": 1.3, "depth_scale": 2.0, "depth_offset": 0.25},
        {"depth_mode": "align"},
        {"depth_fit": "affine"},
        {"depth_format": "inverse-relative", "depth_fit": "median"},
    ],
    ids=str,
)
def test_formats_and_options_of_depth_give_what_the_pipeline_writes(
    asked: dict[str, object], server: CogServer, outside: Outside, settings: Settings, tmp_path: Path
) -> None:
    answer = server.predict({**INPUTS, **asked, "max_gaussians": 1000})
    assert answer["status"] == "succeeded", answer
    options = PredictOptions.from_mapping({**asked, "max_gaussians": 1000})
    expected = directly_predicted(settings, options, tmp_path)
    (upload,) = outside.uploads
    assert upload.path == f"/splats/splat{FORMATS[options.output_format].suffix}"
    assert upload.sha256 == hashlib.sha256(expected.read_bytes()).hexdigest()
    assert answer["metrics"]["num_gaussians"] == 1000


@pytest.mark.slow
def test_a_film_is_answered_as_mp4(server: CogServer, outside: Outside) -> None:
    answer = server.predict({**INPUTS, "output_format": "mp4", "max_gaussians": 1000})
    assert answer["status"] == "succeeded", answer
    (upload,) = outside.uploads
    assert upload.path == "/splats/splat.mp4"
    assert upload.num_bytes > 1000


def test_options_that_exclude_each_other_fail_with_a_reason(server: CogServer) -> None:
    answer = server.predict({**INPUTS, "output_format": "glb", "axes": "opencv"})
    assert answer["status"] == "failed"
    assert "invalid_option: axes is 'opencv', but glb always has opengl" in answer["error"]


def test_urls_are_fetched_and_the_splat_is_named_after_the_image(server: CogServer, outside: Outside) -> None:
    outside.files = {"/photos/summer%20beach": PHOTOGRAPH, "/depth": DEPTH}
    answer = server.predict({"image": f"{outside.url}/photos/summer%20beach", "depth": f"{outside.url}/depth"})
    assert answer["status"] == "succeeded", answer
    assert [upload.path for upload in outside.uploads] == ["/splats/summer_beach.ply"]


def test_put_runs_a_prediction_under_the_callers_id(server: CogServer) -> None:
    response = server.send("PUT", "/predictions/of-my-own", json={"input": INPUTS})
    assert response.status_code == 200
    assert (response.json()["id"], response.json()["status"]) == ("of-my-own", "succeeded")


def test_asynchronous_prediction_reports_to_the_webhook(server: CogServer, outside: Outside) -> None:
    webhook = f"{outside.url}/hook"
    response = server.post(INPUTS, respond_async=True, id="later", webhook=webhook, webhook_events_filter=["completed"])
    assert response.status_code == 202
    event = outside.next_webhook()
    assert (event["id"], event["status"]) == ("later", "succeeded")
    assert event["output"] == f"{outside.url}/splats/splat.ply"
    assert event["metrics"]["num_gaussians"] == NUM_GAUSSIANS
    assert len(outside.uploads) == 1


def test_cancelled_prediction_stops_and_the_next_one_works(server: CogServer, outside: Outside) -> None:
    assert server.predict(INPUTS)["status"] == "succeeded"
    outside.uploads.clear()
    server.wait_until_ready()
    webhook = f"{outside.url}/hook"
    response = server.post(
        INPUTS, respond_async=True, id="unwanted", webhook=webhook, webhook_events_filter=["completed"]
    )
    assert response.status_code == 202
    # At once, though coglet hangs if it is cancelled while it reads the inputs: the guard waits.
    assert server.send("POST", "/predictions/unwanted/cancel").status_code == 200
    assert outside.next_webhook()["status"] == "canceled"
    server.wait_until_ready()
    assert outside.uploads == []
    assert server.predict(INPUTS)["status"] == "succeeded"


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        pytest.param({"image": None}, "image", id="null image"),
        pytest.param({"image": 5}, "image", id="image is a number"),
        pytest.param({"image": [INPUTS["image"]]}, "image", id="list of images"),
        pytest.param({"depth": 5}, "depth", id="depth is a number"),
        pytest.param({"focal_length_px": 0.5}, "focal_length_px", id="pixels below range"),
        pytest.param({"focal_length_px": 1_000_001}, "focal_length_px", id="pixels above range"),
        pytest.param({"focal_length_px": "400"}, "focal_length_px", id="pixels as text"),
        pytest.param({"focal_length_px": None}, "focal_length_px", id="null pixels"),
        pytest.param({"focal_length_mm": 0}, "focal_length_mm", id="millimetres below range"),
        pytest.param({"focal_length_mm": 5001}, "focal_length_mm", id="millimetres above range"),
        pytest.param({"output_format": "obj"}, "output_format", id="unknown format"),
    ],
)
def test_inputs_that_the_schema_excludes_are_refused(server: CogServer, changed: dict[str, object], field: str) -> None:
    response = server.post({**INPUTS, **changed})
    assert response.status_code == 422
    assert [detail["loc"] for detail in response.json()["detail"]] == [["body", "input", field]]


def test_a_missing_image_is_refused(server: CogServer) -> None:
    response = server.post({"depth": INPUTS["depth"]})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "input", "image"]


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        pytest.param({"image": "/etc/passwd"}, "invalid_input: image is '/etc/passwd', not a file", id="path"),
        pytest.param({"image": "file:///etc/passwd"}, "invalid_input: image is 'file:", id="file address"),
        pytest.param({"image": ""}, "invalid_input: image is '', not a file", id="empty text"),
        pytest.param({"depth": "/etc/passwd"}, "invalid_input: depth is '/etc/passwd', not a file", id="depth path"),
        pytest.param({"image": data_uri(b"")}, "invalid_input: image has 0 bytes", id="zero bytes"),
        pytest.param({"image": "data:image/jpeg;base64,!!!"}, "invalid_input: image has 0 bytes", id="bad base64"),
        pytest.param({"depth": data_uri(b"")}, "invalid_input: depth has 0 bytes", id="depth with zero bytes"),
        pytest.param({"image": data_uri(b"a letter, not an image")}, "invalid_image: ", id="text file"),
        pytest.param({"image": data_uri(PHOTOGRAPH[: len(PHOTOGRAPH) // 2])}, "invalid_image: ", id="truncated"),
        pytest.param({"depth": data_uri(b"a letter, not a map")}, "invalid_depth: ", id="depth is text"),
        pytest.param({"focal_length_px": 400, "focal_length_mm": 28}, "invalid_option: focal_", id="both lengths"),
    ],
)
def test_inputs_that_cannot_be_used_fail_with_a_reason(
    server: CogServer, outside: Outside, changed: dict[str, object], error: str
) -> None:
    answer = server.predict({**INPUTS, **changed})
    assert answer["status"] == "failed"
    assert error in answer["error"]
    assert "output" not in answer
    assert outside.uploads == []
    assert server.temporary_files() == []


def test_a_url_without_a_file_fails_and_leaves_nothing(server: CogServer, outside: Outside) -> None:
    answer = server.predict({**INPUTS, "image": f"{outside.url}/nothing-here"})
    assert answer["status"] == "failed"
    assert answer["error"] == "fetch_failed: 127.0.0.1 answered 404 Not Found: check the URL"
    assert server.predict(INPUTS)["status"] == "succeeded"
    assert server.temporary_files() == ["splat.ply"]


def test_the_server_publishes_our_schema(server: CogServer) -> None:
    published = requests.get(f"{server.url}/openapi.json", timeout=10).json()
    assert published == json.loads((ROOT / "openapi_schema.json").read_text(encoding="utf-8"))


def test_setup_reports_its_time_and_uses_nothing_deprecated(server: CogServer) -> None:
    log = server.log()
    assert "sharp on cpu: ready after" in log
    assert "deprecated; use" not in log


@pytest.mark.slow
def test_thirty_predictions_in_a_row_leave_disk_and_memory_as_they_were(server: CogServer, outside: Outside) -> None:
    anonymous_bytes = []
    for number in range(1, 31):
        answer = server.predict(INPUTS)
        assert answer["status"] == "succeeded", answer
        assert server.temporary_files() == ["splat.ply"], f"after prediction {number}"
        anonymous_bytes.append(server.anonymous_bytes())
    assert len({upload.sha256 for upload in outside.uploads}) == 1
    assert len(outside.uploads) == 30
    print(f"MB after each: {[number // 10**6 for number in anonymous_bytes]}")
    assert min(anonymous_bytes[25:]) < 1.05 * min(anonymous_bytes[5:10]), anonymous_bytes


@pytest.mark.slow
def test_failed_setup_shows_why_in_the_log(tmp_path: Path) -> None:
    with started_cog_server(tmp_path, "--model", "sharp", SHARP_CHECKPOINT=str(tmp_path / "missing.pt")) as server:
        with pytest.raises(RuntimeError, match="SETUP_FAILED"):
            server.wait_until_ready()
        deadline = time.monotonic() + 10
        while "missing.pt" not in server.log() and time.monotonic() < deadline:
            time.sleep(0.1)
        log = server.log()
        assert "Traceback (most recent call last)" in log
        assert "predict.py" in log
        assert "INFO coglet::setup: sharp_cog.errors.CheckpointMissingError: " in log  # The last line of the traceback.
        assert server.post({"image": "data:,"}).status_code == 503


@pytest.mark.parametrize(
    ("downloaded", "output"),
    [
        ("tmpab12_d34holiday.jpg", "holiday.ply"),
        ("tmpab12_d34holiday.2024.heic", "holiday.2024.ply"),
        ("tmpab12_d34file.jpg", "splat.ply"),
        ("tmpab12_d34file", "splat.ply"),
        ("tmpab12_d34", "splat.ply"),
        ("tmpab12_d34.jpg", "jpg.ply"),
        ("tmpab12_d34tmpfile.png", "tmpfile.ply"),
        ("tmpab12_d34..%2F..%2Fetc?x=1.png", "2F.._2Fetc_x_1.ply"),
        ("tmpab12_d34\u5199\u771f.jpg", "splat.ply"),
        (f"tmpab12_d34{'long' * 40}.jpg", f"{'long' * 25}.ply"),
    ],
)
def test_a_splat_is_named_after_the_input_in_safe_characters(downloaded: str, output: str) -> None:
    assert predict._output_name(cog.Path(f"/tmp/{downloaded}"), ".ply") == output

"""The HTTP service on a real socket: its answers, and clients that misbehave."""

from __future__ import annotations

import gzip
import io
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
import requests
from PIL import Image
from plyfile import PlyData

from benchmarks.serve import drive
from sharp_cog import PredictOptions, Settings, SharpPipeline
from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import CheckpointError, DeviceError
from sharp_cog.formats import FORMATS
from sharp_cog.pipeline.prediction import Prediction
from tests.gated import Gated
from tests.images import npy, png
from tests.lift import small_lift
from tests.service import Service, serving
from tests.website import Site, says

ROOT = Path(__file__).parents[2]
ROOM, DEPTH = ((ROOT / "examples" / name).read_bytes() for name in ("room.jpg", "room.depth.png"))
GIVEN: dict[str, Any] = {"file": ("the room.jpg", ROOM), "depth": ("room.png", DEPTH)}


@pytest.fixture(scope="module")
def lift() -> SharpPipeline:
    return small_lift()


@pytest.fixture(scope="module")
def service(lift: SharpPipeline) -> Iterator[Service]:
    with serving(lambda: lift) as found:
        yield found


def post(service: Service, path: str, files: dict[str, Any] | None = None, **data: object) -> requests.Response:
    return requests.post(f"{service.url}{path}", files=GIVEN if files is None else files, data=data, timeout=60)


def test_programs_get_a_description_of_the_service(service: Service) -> None:
    told = requests.get(service.url, timeout=10).json()
    assert told.keys() >= {"message", "version", "endpoints"}
    assert "/predict" in told["endpoints"]
    names = {format_["name"] for format_ in told["formats"]}
    assert names <= FORMATS.keys()
    assert {"ply", "spz", "sog"} <= names
    assert told["needs_depth"] is True


def test_browsers_get_the_page(service: Service) -> None:
    answer = requests.get(service.url, headers={"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}, timeout=10)
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "<!doctype html>" in answer.text
    assert answer.headers["Vary"] == "Accept"


def test_health_names_the_model_and_the_device(service: Service) -> None:
    answer = requests.get(f"{service.url}/health", timeout=10)
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "healthy",
        "cuda_available": False,
        "device": "cpu",
        "model": "lift",
        "requests": 0,
    }


MILLIMETRES = (
    "depth map taken as metric, as integers of a depth camera, in millimetres: if that is wrong, set depth_format"
)


def test_a_splat_as_a_file(service: Service, lift: SharpPipeline, tmp_path: Path) -> None:
    answer = post(service, "/predict/ply", f_px=900, max_gaussians=500)
    assert answer.status_code == 200
    assert answer.headers["Content-Disposition"] == 'attachment; filename="the_room.ply"'
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["X-Sharp-Assumptions"] == MILLIMETRES
    named = post(service, "/predict/ply", f_px=900, max_gaussians=500, depth_format="metric")
    assert "X-Sharp-Assumptions" not in named.headers
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    assert PlyData.read(io.BytesIO(answer.content))["vertex"].count == 500
    own = lift(ROOM, PredictOptions(focal_length_px=900, max_gaussians=500), depth=DEPTH)
    assert own.write(tmp_path / "own.ply").read_bytes() == answer.content


def test_a_splat_as_arrays(service: Service, lift: SharpPipeline) -> None:
    """JSON, JSON compressed, and numpy's own: the same numbers, and those of the pipeline."""
    own = lift(ROOM, PredictOptions(max_gaussians=300), depth=DEPTH)
    told: dict[str, Any] = {}
    for name, headers in {
        "plain": {"Accept-Encoding": "identity"},
        "none": {"Accept-Encoding": "gzip;q=0, identity"},
        "gzip": {"Accept-Encoding": "br, gzip;q=0.5"},
        "npz": {"Accept": "application/x-npz"},
    }.items():
        answer = requests.post(
            f"{service.url}/predict",
            files=GIVEN,
            data={"max_gaussians": 300},
            headers=headers,
            timeout=60,
            stream=True,
        )
        assert answer.status_code == 200
        content = answer.raw.read(decode_content=False)
        assert answer.headers.get("Content-Encoding") == ("gzip" if name == "gzip" else None)
        if name == "npz":
            assert answer.headers["Content-Type"] == "application/x-npz"
            with np.load(io.BytesIO(content)) as held:
                told[name] = {key: held[key] for key in held.files}
            told[name]["metadata"] = json.loads(told[name].pop("metadata.json"))
        else:
            assert answer.headers["Content-Type"] == "application/json"
            told[name] = json.loads(gzip.decompress(content) if name == "gzip" else content)
    for found in told.values():
        assert found.keys() == {"positions", "scales", "rotations", "opacities", "colors", "metadata"}
        np.testing.assert_array_equal(np.array(found["positions"], np.float32), own.gaussians.means)
        np.testing.assert_array_equal(np.array(found["rotations"], np.float32), own.gaussians.quaternions_wxyz)
        assert np.shape(found["opacities"]) == (300, 1)
        about = found["metadata"]
        assert about["image_size"] == [1200, 800]
        assert about["num_gaussians"] == 300
        assert about["focal_length"] == pytest.approx(own.camera.focal_length_px)
        assert about["focal_length_source"] == "exif_35mm"
        assert about["assumptions"] == [MILLIMETRES]


def test_a_url_in_place_of_a_file(service: Service, site: Site) -> None:
    image_url, depth_url = site.url("/a.jpg", says(ROOM)), site.url("/a.png", says(DEPTH))
    form = {"image_url": image_url, "depth_url": depth_url, "max_gaussians": 100}
    answer = requests.post(f"{service.url}/predict/spz", data=form, timeout=60)
    assert answer.content == post(service, "/predict/spz", max_gaussians=100).content
    assert 'filename="splat.spz"' in answer.headers["Content-Disposition"]


def test_a_picture_by_url_and_its_depth_map_as_a_file(service: Service, site: Site) -> None:
    form = {"image_url": site.url("/a.jpg", says(ROOM)), "max_gaussians": "100"}
    answer = requests.post(f"{service.url}/predict/spz", data=form, files={"depth": DEPTH}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.content == post(service, "/predict/spz", max_gaussians=100).content
    assert 'filename="splat.spz"' in answer.headers["Content-Disposition"]


def test_an_image_of_a_phone_is_accepted(service: Service) -> None:
    """HEIC, as an iPhone writes it."""
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.open(io.BytesIO(png()))).save(file)
    answer = post(
        service, "/predict/spz", {"file": ("IMG_0001.HEIC", file.getvalue()), "depth": npy()}, max_gaussians=100
    )
    assert answer.status_code == 200
    assert 'filename="IMG_0001.spz"' in answer.headers["Content-Disposition"]


def test_a_url_with_a_private_address_needs_a_setting(lift: SharpPipeline, site: Site) -> None:
    url = site.url("/a.jpg", says(ROOM))
    with serving(lambda: lift, ServiceSettings()) as guarded:
        answer = requests.post(f"{guarded.url}/predict/ply", data={"image_url": url}, timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (422, "fetch_failed")
    assert site.seen == []


@pytest.mark.parametrize(
    ("path", "files", "data", "status", "code"),
    [
        ("/predict/ply", {"file": b"text"}, {}, 422, "invalid_image"),
        ("/predict/ply", {"depth": DEPTH}, {}, 422, "invalid_image"),
        ("/predict/ply", {}, {}, 422, "invalid_image"),
        ("/predict/ply", {"file": ("", b"")}, {}, 422, "invalid_image"),
        ("/predict/ply", {"file": ROOM}, {"image_url": "http://example.com"}, 422, "invalid_image"),
        ("/predict/ply", {"file": ROOM, "depth": DEPTH}, {"depth_url": "http://example.com"}, 422, "invalid_depth"),
        ("/predict/ply", {"file": ROOM}, {}, 422, "invalid_depth"),
        ("/predict/ply", {"file": ROOM}, {"colour": "red"}, 422, "invalid_option"),
        ("/predict/ply", {"file": ROOM}, {"f_px": "wide"}, 422, "invalid_option"),
        ("/predict/ply", {"file": ROOM}, {"f_px": "3", "focal_length_px": "3"}, 422, "invalid_option"),
        ("/predict/ply", {"file": ROOM}, {"output_format": "spz"}, 422, "invalid_option"),
        ("/predict/ply", {"file": ROOM}, {"save_internal_depth": "true"}, 422, "invalid_option"),
        ("/predict/obj", {"file": ROOM}, {}, 422, "invalid_option"),
        ("/predict", {"file": ROOM}, {"format": "spz"}, 422, "invalid_option"),
        ("/predict", {}, {"file": "text"}, 422, "invalid_input"),
        ("/predict", {"file": ROOM, "scale": b"2"}, {}, 422, "invalid_input"),
        ("/predict", {"file": ROOM}, {"scale": ["2", "3"]}, 422, "invalid_input"),
        ("/elsewhere", {"file": ROOM}, {}, 404, "not_found"),
        ("/health", {"file": ROOM}, {}, 405, "method_not_allowed"),
    ],
)
def test_a_bad_request_is_refused_with_a_code(
    service: Service, path: str, files: dict[str, Any], data: dict[str, Any], status: int, code: str
) -> None:
    answer = post(service, path, files, **data)
    assert answer.json().keys() == {"error", "code"}
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


def test_a_format_that_is_not_installed_is_refused_and_not_offered(tmp_path: Path) -> None:
    pipeline = Gated()
    pipeline.settings = Settings(model="lift", viewer_dir=tmp_path)
    with serving(lambda: pipeline) as bare:
        answer = post(bare, "/predict/html", {"file": b"abc"})
        assert (answer.status_code, answer.json()["code"]) == (422, "not_installed")
        assert str(tmp_path) not in answer.text
        assert "html" not in {format_["name"] for format_ in requests.get(bare.url, timeout=10).json()["formats"]}


def test_a_body_that_is_not_a_form_is_refused(service: Service) -> None:
    for content_type in ("multipart/form-data", "multipart/form-data; boundary=x", "application/json", "image/jpeg"):
        answer = requests.post(
            f"{service.url}/predict/ply", data=b"--y\r\n{}", headers={"Content-Type": content_type}, timeout=10
        )
        assert answer.status_code == 422, (content_type, answer.text)
        assert answer.json()["code"] in ("invalid_input", "invalid_image")


def test_a_large_body_is_refused_before_it_is_read(lift: SharpPipeline) -> None:
    with serving(lambda: lift, ServiceSettings(max_body_megabytes=0.1)) as small:
        assert post(small, "/predict/ply").json()["code"] == "request_too_large"
        with socket.create_connection(("127.0.0.1", small.port), timeout=10) as sock:
            sock.sendall(b"POST /predict/ply HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n")
            assert sock.recv(12) == b"HTTP/1.1 413"

        def chunks() -> Iterator[bytes]:
            """Yield a body without a declared length."""
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(50):
                yield bytes(10_000)

        answer = requests.post(
            f"{small.url}/predict/ply",
            data=chunks(),
            headers={"Content-Type": "multipart/form-data; boundary=x"},
            timeout=10,
        )
        assert (answer.status_code, answer.json()["code"]) == (413, "request_too_large")


def test_metrics_count_by_outcome(lift: SharpPipeline) -> None:
    with serving(lambda: lift) as fresh:
        post(fresh, "/predict/splat", max_gaussians=10)
        post(fresh, "/predict/splat", {"file": b"text"})
        no_form = {"Content-Type": "multipart/form-data; boundary=x"}
        requests.post(f"{fresh.url}/predict/splat", data=b"--y\r\n{}", headers=no_form, timeout=10)
        answer = requests.get(f"{fresh.url}/metrics", timeout=10)
    assert answer.headers["Content-Type"].startswith("text/plain")
    lines = answer.text.splitlines()
    assert 'sharp_requests_total{door="http",outcome="ok"} 1.0' in lines
    assert 'sharp_requests_total{door="http",outcome="invalid_image"} 1.0' in lines
    assert 'sharp_requests_total{door="http",outcome="invalid_input"} 1.0' in lines
    assert 'sharp_stage_seconds_count{stage="network"} 1.0' in lines
    assert "sharp_queue_requests 0.0" in lines
    assert "sharp_ready 1.0" in lines


def test_requests_are_refused_until_the_model_is_loaded() -> None:
    go_on = threading.Event()

    def load() -> SharpPipeline:
        assert go_on.wait(30)
        return Gated()

    with serving(load, is_ready=False) as loading:
        health = requests.get(f"{loading.url}/health", timeout=10)
        assert (health.status_code, health.json()["status"]) == (503, "loading")
        answer = post(loading, "/predict/ply", {"file": b"abc"})
        assert (answer.status_code, answer.json()["code"]) == (503, "busy")
        assert int(answer.headers["Retry-After"]) >= 1
        go_on.set()
        loading.wait_until_ready()
        assert post(loading, "/predict/ply", {"file": b"abc"}).status_code == 200


def test_health_reports_a_model_that_cannot_be_loaded() -> None:
    def load() -> SharpPipeline:
        raise CheckpointError("/models/sharp.pt is broken")

    with serving(load, is_ready=False) as failed:
        for _ in range(100):
            health = requests.get(f"{failed.url}/health", timeout=10)
            if health.json()["status"] == "failed":
                break
            time.sleep(0.02)
        assert health.status_code == 503
        assert health.json()["code"] == "invalid_checkpoint"
        answer = post(failed, "/predict/ply", {"file": b"abc"})
        assert (answer.status_code, answer.json()["code"]) == (503, "invalid_checkpoint")
        assert int(answer.headers["Retry-After"]) >= 1
        assert "/models" not in answer.text
        head = requests.head(f"{failed.url}/health", timeout=10)
        assert (head.status_code, head.content) == (503, b"")
        assert 'sharp_refusals_total{reason="failed"} 1.0' in requests.get(f"{failed.url}/metrics", timeout=10).text


def test_a_full_queue_answers_when_to_try_again() -> None:
    pipeline = Gated(is_open=False)
    with serving(lambda: pipeline, ServiceSettings(queue_size=1)) as busy, ThreadPoolExecutor(3) as clients:
        waiting = [clients.submit(post, busy, "/predict/splat", {"file": bytes(number)}) for number in (5, 6)]
        until(busy, lambda health: health["requests"] == 2)
        answer = post(busy, "/predict/splat", {"file": b"abc"})
        assert (answer.status_code, answer.json()["code"]) == (503, "busy")
        assert int(answer.headers["Retry-After"]) >= 1
        pipeline.gate.set()
        assert [len(task.result().content) for task in waiting] == [5 * 32, 6 * 32]


def until(service: Service, condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition(requests.get(f"{service.url}/health", timeout=10).json()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_client_that_disconnects_loses_its_place_in_the_queue() -> None:
    pipeline = Gated(is_open=False)
    with serving(lambda: pipeline) as busy, ThreadPoolExecutor(2) as clients:
        first = clients.submit(post, busy, "/predict/splat", {"file": bytes(5)})
        until(busy, lambda health: health["requests"] == 1)
        body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabcdefg\r\n--x--\r\n'
        with socket.create_connection(("127.0.0.1", busy.port), timeout=10) as sock:
            sock.sendall(
                b"POST /predict/splat HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body) + body
            )
            until(busy, lambda health: health["requests"] == 2)
        until(busy, lambda health: health["requests"] == 1)
        pipeline.gate.set()
        assert first.result().status_code == 200
        assert pipeline.predicted == [5]
        assert 'outcome="hung_up"} 1.0' in requests.get(f"{busy.url}/metrics", timeout=10).text


def test_a_client_that_disconnects_during_its_upload_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    with serving(Gated) as service:
        with socket.create_connection(("127.0.0.1", service.port), timeout=10) as sock:
            sock.sendall(
                b"POST /predict/splat HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x\r\n"
                b'Content-Length: 1000\r\n\r\n--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            )
        counted, deadline = "", time.monotonic() + 10
        while "sharp_requests_total{" not in counted and time.monotonic() < deadline:
            counted = requests.get(f"{service.url}/metrics", timeout=10).text
    assert 'sharp_requests_total{door="http",outcome="hung_up"} 1.0' in counted
    assert "internal_error" not in counted
    assert not [record for record in caplog.records if record.exc_info]


def test_a_request_has_a_deadline() -> None:
    pipeline = Gated(is_open=False)
    with serving(lambda: pipeline, ServiceSettings(request_seconds=0.3)) as busy:
        answer = post(busy, "/predict/splat", {"file": b"abc"})
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
        pipeline.gate.set()
        assert post(busy, "/predict/splat", {"file": b"abcd"}).status_code == 200


def test_a_file_that_is_written_after_the_deadline_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = threading.Event()

    def slow_write(path: Path, prediction: Prediction) -> None:
        time.sleep(0.3)
        path.write_bytes(b"splat")
        written.set()

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("sharp_cog.serving.http._write", slow_write)
    with serving(Gated, ServiceSettings(request_seconds=0.2)) as slow:
        assert post(slow, "/predict/splat", {"file": b"abc"}).status_code == 504
        assert written.wait(20)
        (folder,) = tmp_path.glob("sharp_cog-scratch-*")
        deadline = time.monotonic() + 10
        while list(folder.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_health_reports_a_failed_device() -> None:
    pipeline = Gated()
    pipeline.failure = DeviceError("CUDA error: an illegal memory access was encountered")
    with serving(lambda: pipeline) as broken:
        answer = post(broken, "/predict/ply", {"file": b"abc"})
        assert (answer.status_code, answer.json()["code"]) == (500, "device_failed")
        assert "CUDA" not in answer.json()["error"]
        health = requests.get(f"{broken.url}/health", timeout=10)
        assert (health.status_code, health.json()["code"]) == (503, "device_failed")


def test_progress_is_found_by_the_request_id() -> None:
    pipeline = Gated(is_open=False)
    with serving(lambda: pipeline) as busy, ThreadPoolExecutor(2) as clients:

        def ask() -> requests.Response:
            return requests.post(
                f"{busy.url}/predict/ply", files={"file": b"abc"}, headers={"X-Request-Id": "mine-1"}, timeout=30
            )

        task = clients.submit(ask)
        until(busy, lambda health: health["requests"] == 1)
        for _ in range(200):
            told = requests.get(f"{busy.url}/progress/mine-1", timeout=10)
            if told.json().get("stage") == "predict":
                break
            time.sleep(0.01)
        assert told.json() == {"stage": "predict"}
        pipeline.gate.set()
        assert task.result().headers["X-Request-Id"] == "mine-1"
        assert requests.get(f"{busy.url}/progress/mine-1", timeout=10).status_code == 404


def test_stopping_finishes_running_requests_and_takes_no_more() -> None:
    pipeline = Gated(is_open=False)
    with ThreadPoolExecutor(2) as clients, serving(lambda: pipeline) as stopping:
        task = clients.submit(post, stopping, "/predict/splat", {"file": bytes(5)})
        until(stopping, lambda health: health["requests"] == 1)
        stopping.server.should_exit = True
        deadline = time.monotonic() + 10
        while is_listening(stopping):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        pipeline.gate.set()
        assert len(task.result().content) == 5 * 32


def is_listening(service: Service) -> bool:
    try:
        requests.get(f"{service.url}/health", timeout=10)
    except requests.ConnectionError:
        return False
    return True


def test_no_file_is_left_behind(lift: SharpPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with serving(lambda: lift) as fresh:
        (folder,) = tmp_path.glob("sharp_cog-scratch-*")
        for path in ("/predict/ply", "/predict", "/predict/sog"):
            assert post(fresh, path, max_gaussians=100).status_code == 200
        post(fresh, "/predict/ply", {"file": b"text"})
        with socket.create_connection(("127.0.0.1", fresh.port), timeout=10) as sock:  # Reads a little, and goes.
            prepared = requests.Request("POST", f"{fresh.url}/predict/ply", files=GIVEN).prepare()
            assert isinstance(prepared.body, bytes)
            head = "".join(f"{name}: {value}\r\n" for name, value in prepared.headers.items())
            sock.sendall(f"POST /predict/ply HTTP/1.1\r\nHost: a\r\n{head}\r\n".encode() + prepared.body)
            assert sock.recv(100).startswith(b"HTTP/1.1 200")
        deadline = time.monotonic() + 10
        while list(folder.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert list(folder.iterdir()) == []
    assert not folder.exists()


@pytest.mark.slow
def test_many_clients_each_get_their_own_splat(service: Service) -> None:
    report = drive(service.url, num_requests=12, num_clients=6, num_images=3)
    assert (report.num_lost, report.num_wrong) == (0, 0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_requests_from_sixteen_clients(tmp_path: Path) -> None:
    """None lost, none wrong, and memory does not grow once every picture has been there."""
    command = [sys.executable, "-m", "benchmarks.serve", "--json", str(tmp_path / "report.json")]
    subprocess.run(command, check=True, timeout=900, cwd=ROOT)
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["seconds"]) == 200
    assert (report["num_lost"], report["num_wrong"]) == (0, 0)
    assert max(report["memory"][5:]) < 1.1 * max(report["memory"][:5])

"""The handler that RunPod calls, without RunPod."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from plyfile import PlyData
from runpod.serverless.modules import rp_fastapi

from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import DeviceError, PredictionError
from sharp_cog.formats import FORMATS
from sharp_cog.serving import runpod
from sharp_cog.serving.runpod import create_handler
from tests.gated import Gated
from tests.website import Site, says

SETTINGS = ServiceSettings(fetch_private=True)


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def ask(
    values: object, *, pipeline: Gated | None = None, settings: ServiceSettings = SETTINGS, id_: str = "job"
) -> Any:
    return create_handler(pipeline or Gated(), settings)({"id": id_, "input": values})


@pytest.mark.parametrize("name", ["image", "image_base64", "image_b64"])
@pytest.mark.parametrize("prefix", ["", "data:image/jpeg;base64,"])
def test_an_image_becomes_a_splat(name: str, prefix: str) -> None:
    answer = ask({name: prefix + b64(b"abcde")})
    content = base64.b64decode(answer.pop("ply"))
    assert content.startswith(b"ply\n")
    assert b"element vertex 5\n" in content
    assert answer.pop("timings").keys() == {"decode", "network", "write"}
    assert answer == {
        "status": "success",
        "num_gaussians": 5,
        "image_size": {"width": 5, "height": 1},
        "focal_length_px": 1.0,
        "focal_length_source": "caller",
        "assumptions": [],
    }


@pytest.mark.parametrize("format_name", [name for name in FORMATS if name not in ("html", "mp4")])
def test_another_format_comes_under_its_own_name(format_name: str) -> None:
    for option in ("format", "output_format"):
        answer = ask({"image": b64(b"abcde"), option: format_name})
        assert len(base64.b64decode(answer[format_name])) > 50
        assert "ply" not in answer or format_name == "ply"


def test_a_data_uri_is_taken_in_place_of_a_url() -> None:
    answer = ask({"image_url": f"data:image/jpeg;base64,{b64(b'abcdefg')}", "depth_url": "data:;base64,YQ=="})
    assert answer["num_gaussians"] == 7


def test_an_image_under_a_wrong_name_is_named() -> None:
    assert ask({"photo": b64(b"abc")})["error"] == "unknown field photo: give image or image_url"


def test_a_url_is_fetched(site: Site) -> None:
    answer = ask({"image_url": site.url("/a.jpg", says(b"abcdefg"))})
    assert answer["num_gaussians"] == 7
    refused = ask({"image_url": site.url("/a.jpg", says(b"abcdefg"))}, settings=ServiceSettings())
    assert refused["code"] == "fetch_failed"


@pytest.mark.parametrize(
    ("values", "code"),
    [
        (None, "invalid_input"),
        ("text", "invalid_input"),
        ({}, "invalid_image"),
        ({"image": ""}, "invalid_image"),
        ({"image": None, "image_url": None}, "invalid_image"),
        ({"image": "aGFsbG8=", "image_url": "https://example.com"}, "invalid_image"),
        ({"image": "aGFsbG8=", "image_b64": "aGFsbG8="}, "invalid_image"),
        ({"image_b64": "aGFsbG8=", "image_url": "https://example.com"}, "invalid_image"),
        ({"image": 3}, "invalid_input"),
        ({"image": "%%%"}, "invalid_input"),
        ({"image_url": 3}, "invalid_input"),
        ({"image_url": "ftp://example.com"}, "fetch_failed"),
        ({"image": "aGFsbG8=", "colour": "red"}, "invalid_option"),
        ({"image": "aGFsbG8=", "format": "obj"}, "invalid_option"),
        ({"image": "aGFsbG8=", "format": "ply", "output_format": "ply"}, "invalid_option"),
        ({"image": "aGFsbG8=", "save_internal_depth": True}, "invalid_option"),
        ({"image": "aGFsbG8=", "upload_url": 3}, "invalid_input"),
        ({"image": "aGFsbG8=", "upload_url": "file:///tmp/a"}, "upload_failed"),
        ({"images": []}, "invalid_input"),
        ({"images": "aGFsbG8="}, "invalid_input"),
        ({"images": [{"image": "aGFsbG8="}] * 101}, "invalid_input"),
        ({"images": [{"image": "aGFsbG8="}], "image": "aGFsbG8="}, "invalid_input"),
    ],
)
def test_a_bad_request_is_an_error_with_a_code(values: object, code: str) -> None:
    answer = ask(values)
    assert answer.keys() == {"error", "code"}
    assert answer["code"] == code
    assert answer["error"]


def test_an_upload_url_that_is_not_text_is_refused_before_the_prediction() -> None:
    pipeline = Gated()
    assert ask({"image": b64(b"abc"), "upload_url": 3}, pipeline=pipeline)["code"] == "invalid_input"
    assert pipeline.predicted == []


def test_a_list_is_answered_one_by_one() -> None:
    answer = ask({"images": [{"image": b64(b"abc")}, {"image": "%"}, 3, {"image": b64(b"ab"), "format": "spz"}]})
    assert answer["status"] == "partial"
    assert answer["summary"] == {"total": 4, "succeeded": 2, "failed": 2}
    results = answer["results"]
    assert [result["status"] for result in results] == ["success", "error", "error", "success"]
    assert [result.get("num_gaussians") for result in results] == [3, None, None, 2]
    assert results[1]["code"] == results[2]["code"] == "invalid_input"
    assert "spz" in results[3]
    assert "error" not in answer, "RunPod would mark the whole job as failed"


def test_options_beside_a_list_count_for_all() -> None:
    answer = ask({"format": "splat", "images": [{"image": b64(b"abc")}, {"image": b64(b"ab"), "max_gaussians": 1}]})
    assert answer["status"] == "success"
    assert [len(base64.b64decode(result["splat"])) for result in answer["results"]] == [3 * 32, 32]


def test_a_list_without_any_success_is_a_failed_job() -> None:
    answer = ask({"images": [{"image": "%"}, {}]})
    assert answer["status"] == "error"
    assert answer["summary"] == {"total": 2, "succeeded": 0, "failed": 2}
    assert "none of 2 images" in answer["error"]
    assert answer["code"] == "invalid_input"


def test_a_splat_that_is_too_large_is_refused_with_what_would_fit() -> None:
    picture = {"image": b64(bytes(400_000)), "format": "ply"}  # 22.4 MB, 29.9 MB as base64.
    refused = ask(picture)
    assert refused["code"] == "result_too_large"
    assert "22.4 MB, 29.9 MB as base64, and 10.0 MB" in refused["error"]
    assert "format sog" in refused["error"]
    num = int(refused["error"].partition("format ply with max_gaussians ")[2].partition(",")[0])
    assert ask({**picture, "max_gaussians": num})["status"] == "success"
    assert ask(picture, id_="sync-1", settings=replace(SETTINGS, runpod_sync_megabytes=31))["status"] == "success"
    assert ask(picture, id_="sync-1")["code"] == "result_too_large"


@pytest.mark.parametrize("megabytes", [0.1, 0.100001, 0.100002, 0.100003, 0.100055, 0.6])
def test_a_splat_in_no_particular_format_is_simplified_to_the_most_that_fits(megabytes: float) -> None:
    settings = replace(SETTINGS, runpod_async_megabytes=megabytes)
    budget = int(megabytes * 1e6) - runpod.OVERHEAD_BYTES
    answer = ask({"image": b64(bytes(12_000))}, settings=settings)
    assert answer["status"] == "success"
    assert answer["simplified_from"] == 12_000
    vertices = PlyData.read(io.BytesIO(base64.b64decode(answer["ply"])))["vertex"]
    assert vertices.count == answer["num_gaussians"] < 12_000
    assert len(answer["ply"]) <= budget
    one_more = {"image": b64(bytes(12_000)), "format": "ply", "max_gaussians": answer["num_gaussians"] + 1}
    assert ask(one_more, settings=settings)["code"] == "result_too_large", "the next larger splat does not fit"


def test_a_simplified_splat_keeps_the_options_of_the_request() -> None:
    settings = replace(SETTINGS, runpod_async_megabytes=0.2)
    image = {"image": b64(bytes(20_000))}
    opaque = ask({**image, "min_opacity": 0.5, "center": True, "scale": 2, "axes": "opengl"}, settings=settings)
    whole = ask({**image, "min_opacity": 0.5}, id_="test-1")
    assert "simplified_from" not in whole
    assert opaque["simplified_from"] == whole["num_gaussians"]
    assert opaque["num_gaussians"] < whole["num_gaussians"] < 20_000
    header = base64.b64decode(opaque["ply"]).partition(b"end_header")[0]
    assert b"comment axes opengl\n" in header
    assert b"comment camera_position " in header
    assert ask({**image, "max_gaussians": 100}, settings=settings)["num_gaussians"] == 100


def test_nothing_fits_where_no_gaussian_does() -> None:
    settings = replace(SETTINGS, runpod_async_megabytes=0.0101)
    assert ask({"image": b64(bytes(20_000))}, settings=settings)["code"] == "result_too_large"


def test_images_of_a_list_in_no_particular_format_share_the_answer() -> None:
    settings = replace(SETTINGS, runpod_async_megabytes=1)
    picture = {"image": b64(bytes(20_000))}
    answer = ask({"images": [picture, picture, {**picture, "max_gaussians": 10}, picture]}, settings=settings)
    assert answer["status"] == "success"
    numbers = [result["num_gaussians"] for result in answer["results"]]
    assert numbers[2] == 10
    assert all(3_000 < number < 20_000 for number in (numbers[0], numbers[1], numbers[3]))
    assert numbers[3] > numbers[0], "the last image gets what the small one has left"
    assert sum(len(result["ply"]) for result in answer["results"]) <= 1_000_000


@pytest.mark.parametrize("id_", ["test-7b1c", "local_test"])
def test_an_answer_on_this_machine_has_no_limit(id_: str) -> None:
    settings = replace(SETTINGS, runpod_sync_megabytes=0.1, runpod_async_megabytes=0.1)
    picture = {"image": b64(bytes(5_000))}
    for values in (picture, {**picture, "format": "ply"}):
        answer = ask(values, settings=settings, id_=id_)
        assert answer["num_gaussians"] == 5_000
        assert "simplified_from" not in answer
    at_runpod = replace(settings, runpod_webhook="https://runpod.example/done")
    assert ask(picture, settings=at_runpod, id_=id_)["num_gaussians"] < 5_000


def test_a_webhook_of_the_local_api_reaches_the_public_internet_alone(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rp_fastapi, "_send_webhook", rp_fastapi._send_webhook)
    url = site.url("/done?token=sesame", says(b""))
    runpod.guard_webhooks(ServiceSettings())
    assert rp_fastapi._send_webhook(url, {"output": {"a": 1}}) is False
    assert site.seen == []
    assert "private address" in caplog.text
    assert "sesame" not in caplog.text
    runpod.guard_webhooks(SETTINGS)
    assert rp_fastapi._send_webhook(url, {"output": {"a": 1}}) is True
    assert json.loads(site.seen[0][3]) == {"output": {"a": 1}}


def test_another_release_of_runpods_package_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(rp_fastapi, "_send_webhook")
    with pytest.raises(RuntimeError, match="has no _send_webhook"):
        runpod.guard_webhooks(SETTINGS)


def test_a_list_shares_the_size_of_one_answer() -> None:
    picture = {"image": b64(bytes(80_000)), "format": "ply"}  # 6 MB as base64.
    answer = ask({"images": [picture, picture]})
    assert answer["status"] == "partial"
    assert answer["results"][1]["code"] == "result_too_large"


def test_a_large_splat_goes_to_a_presigned_url(site: Site) -> None:
    url = site.url("/bucket/splat.ply?signature=sesame", says(b""))
    answer = ask({"image": b64(bytes(400_000)), "upload_url": url})
    assert answer["status"] == "success"
    assert answer["url"] == url.partition("?")[0]
    assert "ply" not in answer
    method, _, _, body = site.seen[0]
    assert method == "PUT"
    assert b"element vertex 400000\n" in body
    failed = ask({"image": b64(b"abc"), "upload_url": site.url("/no?signature=sesame", says(b"", 403))})
    assert failed["code"] == "upload_failed"
    assert "sesame" not in failed["error"]


@pytest.mark.parametrize("failure", [PredictionError("/secret/path"), ZeroDivisionError("/secret/path")])
def test_no_traceback_and_no_secret_leaves_the_worker(failure: Exception) -> None:
    pipeline = Gated()
    pipeline.failure = failure
    answer = ask({"image": b64(b"abc")}, pipeline=pipeline)
    assert answer.keys() == {"error", "code"}
    assert "secret" not in str(answer)
    assert "Traceback" not in str(answer)


def test_a_failed_device_asks_for_a_new_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = tmp_path / "ready"
    ready.touch()
    monkeypatch.setattr(runpod, "READY", ready)
    pipeline = Gated()
    pipeline.failure = DeviceError("CUDA error: an illegal memory access was encountered")
    assert ask({"image": b64(b"abc")}, pipeline=pipeline)["refresh_worker"] is True
    assert not ready.exists()
    assert ask({"images": [{"image": b64(b"abc")}]}, pipeline=pipeline)["refresh_worker"] is True


def test_progress_is_reported() -> None:
    reported: list[tuple[str, str]] = []
    handler = create_handler(Gated(), SETTINGS, report=lambda job, text: reported.append((job["id"], text)))
    handler({"id": "a", "input": {"images": [{"image": b64(b"abc")}, {"image": b64(b"abc")}]}})
    assert reported == [("a", "image 1 of 2"), ("a", "predicting"), ("a", "image 2 of 2"), ("a", "predicting")]

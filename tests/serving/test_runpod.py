"""The handler that RunPod calls, without RunPod."""

from __future__ import annotations

import base64
import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from sharp_cog.config.settings import ServiceSettings
from sharp_cog.errors import DeviceError, PredictionError
from sharp_cog.formats import FORMATS
from sharp_cog.serving import runpod
from sharp_cog.serving.runpod import create_handler
from tests.gated import Gated
from tests.serving.test_fetch import Site, says

SETTINGS = ServiceSettings(fetch_private=True)


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def ask(
    values: object, *, pipeline: Gated | None = None, settings: ServiceSettings = SETTINGS, id_: str = "job"
) -> Any:
    return create_handler(pipeline or Gated(), settings)({"id": id_, "input": values})


@pytest.fixture
def site() -> Iterator[Site]:
    found = Site()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.mark.parametrize("name", ["image", "image_base64", "image_b64"])
@pytest.mark.parametrize("prefix", ["", "data:image/jpeg;base64,"])
def test_a_picture_becomes_a_splat(name: str, prefix: str) -> None:
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
    }


@pytest.mark.parametrize("format_name", [name for name in FORMATS if name not in ("html", "mp4")])
def test_another_format_comes_under_its_own_name(format_name: str) -> None:
    for option in ("format", "output_format"):
        answer = ask({"image": b64(b"abcde"), option: format_name})
        assert len(base64.b64decode(answer[format_name])) > 50
        assert "ply" not in answer or format_name == "ply"


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
        ({"images": [{"image": "aGFsbG8="}], "image": "aGFsbG8="}, "invalid_input"),
    ],
)
def test_what_cannot_be_is_an_error_with_a_code(values: object, code: str) -> None:
    answer = ask(values)
    assert answer.keys() == {"error", "code"}
    assert answer["code"] == code
    assert answer["error"]


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


def test_a_list_of_which_nothing_came_is_a_failed_job() -> None:
    answer = ask({"images": [{"image": "%"}, {}]})
    assert answer["status"] == "error"
    assert answer["summary"] == {"total": 2, "succeeded": 0, "failed": 2}
    assert "none of 2 pictures" in answer["error"]
    assert answer["code"] == "invalid_input"


def test_what_runpod_cannot_pass_back_is_refused_with_what_could() -> None:
    picture = {"image": b64(bytes(400_000))}  # 22.4 MB as .ply, 29.9 MB as base64.
    refused = ask(picture)
    assert refused["code"] == "result_too_large"
    assert "22.4 MB, 29.9 MB as base64, and 10.0 MB" in refused["error"]
    assert "format sog" in refused["error"]
    num = int(refused["error"].partition("format ply with max_gaussians ")[2].partition(",")[0])
    assert ask({**picture, "max_gaussians": num})["status"] == "success"
    assert ask(picture, id_="sync-1", settings=replace(SETTINGS, runpod_sync_megabytes=31))["status"] == "success"
    assert ask(picture, id_="sync-1")["code"] == "result_too_large"


def test_a_list_shares_what_can_be_passed_back() -> None:
    picture = {"image": b64(bytes(80_000))}  # 6 MB as base64.
    answer = ask({"images": [picture, picture]})
    assert answer["status"] == "partial"
    assert answer["results"][1]["code"] == "result_too_large"


def test_a_presigned_address_takes_what_is_large(site: Site) -> None:
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


class Bucket(http.server.ThreadingHTTPServer):
    """As much of S3 as takes one object."""

    def __init__(self, status: int = 200) -> None:
        self.objects: dict[str, bytes] = {}
        bucket = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=key/")
                if "aws-chunked" in self.headers.get("Content-Encoding", ""):
                    size = int(body.partition(b"\r\n")[0].partition(b";")[0], 16)
                    body = body.partition(b"\r\n")[2][:size]
                if status == 200:
                    bucket.objects[urlsplit(self.path).path] = body
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.send_header("ETag", '"1"')
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def settings(self) -> ServiceSettings:
        return replace(
            SETTINGS,
            bucket_endpoint_url=f"http://127.0.0.1:{self.server_address[1]}",
            bucket_access_key_id="key",
            bucket_secret_access_key="sesame",
            bucket_name="splats",
        )


def test_a_bucket_takes_what_is_made() -> None:
    with Bucket() as bucket:
        one = ask({"image": b64(b"abc")}, settings=bucket.settings(), id_="job-1")
        many = ask(
            {"images": [{"image": b64(b"ab")}, {"image": "%"}, {"image": b64(b"a"), "format": "spz"}]},
            id_="job-2",
            settings=bucket.settings(),
        )
        bucket.shutdown()
    urls = [one["url"], *(result["url"] for result in many["results"] if result["status"] == "success")]
    assert [urlsplit(url).path for url in urls] == ["/splats/job-1.ply", "/splats/job-2_0.ply", "/splats/job-2_2.spz"]
    assert bucket.objects.keys() == {urlsplit(url).path for url in urls}
    assert b"element vertex 3\n" in bucket.objects["/splats/job-1.ply"]
    query = parse_qs(urlsplit(urls[0]).query)
    assert query["X-Amz-Expires"] == [str(7 * 24 * 3600)]
    assert "sesame" not in str([one, many])


def test_a_bucket_that_takes_nothing_is_told() -> None:
    with Bucket(status=403) as bucket:
        answer = ask({"image": b64(b"abc")}, settings=bucket.settings())
        bucket.shutdown()
    assert answer == {"error": "the service failed; its log says why", "code": "cannot_write"}


@pytest.mark.parametrize("failure", [PredictionError("/secret/path"), ZeroDivisionError("/secret/path")])
def test_no_traceback_and_no_secret_leaves_the_worker(failure: Exception) -> None:
    pipeline = Gated()
    pipeline.failure = failure
    answer = ask({"image": b64(b"abc")}, pipeline=pipeline)
    assert answer.keys() == {"error", "code"}
    assert "secret" not in str(answer)
    assert "Traceback" not in str(answer)


def test_a_device_that_failed_asks_for_a_new_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = tmp_path / "ready"
    ready.touch()
    monkeypatch.setattr(runpod, "READY", ready)
    pipeline = Gated()
    pipeline.failure = DeviceError("CUDA error: an illegal memory access was encountered")
    assert ask({"image": b64(b"abc")}, pipeline=pipeline)["refresh_worker"] is True
    assert not ready.exists()
    assert ask({"images": [{"image": b64(b"abc")}]}, pipeline=pipeline)["refresh_worker"] is True


def test_progress_is_told() -> None:
    told: list[tuple[str, str]] = []
    handler = create_handler(Gated(), SETTINGS, tell=lambda job, text: told.append((job["id"], text)))
    handler({"id": "a", "input": {"images": [{"image": b64(b"abc")}, {"image": b64(b"abc")}]}})
    assert told == [("a", "picture 1 of 2"), ("a", "predicting"), ("a", "picture 2 of 2"), ("a", "predicting")]

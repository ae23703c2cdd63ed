"""Bodies that clients send to the HTTP service, and the fields of their queries."""

from __future__ import annotations

import base64
import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from plyfile import PlyData

from sharp_cog.serving import bodies
from tests.gated import Gated
from tests.lift import small_lift
from tests.service import Service, serving
from tests.website import Site, says

IMAGE = b"\xff\xd8picture"
"""Image of the pipeline under test, which makes as many Gaussians as an image has bytes."""
B64 = base64.b64encode(IMAGE).decode()


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving(Gated) as found:
        yield found


def num_gaussians(answer: requests.Response) -> int:
    assert answer.status_code == 200, answer.text
    return int(PlyData.read(io.BytesIO(answer.content))["vertex"].count)


def post(service: Service, query: str = "", **rest: Any) -> requests.Response:
    return requests.post(f"{service.url}/predict/ply{query}", timeout=30, **rest)


@pytest.mark.parametrize(
    "rest",
    [
        {"files": {"file": IMAGE}},
        {"files": {"image": IMAGE}},
        {"files": {"image": (None, B64)}},
        {"data": {"image": f"data:image/jpeg;base64,{B64}"}},
        {"data": {"image_base64": B64}},
        {"json": {"image": B64}},
        {"json": {"file": B64, "depth": None, "fov": ""}},
        {"json": {"image_b64": f"data:;base64,{B64}"}},
        {"json": {"image_url": f"data:image/jpeg;base64,{B64}"}},
        {"files": {"image_url": IMAGE}},
        {"data": json.dumps({"image": B64}), "headers": {"Content-Type": "Application/JSON; charset=utf-8"}},
        {"data": IMAGE, "headers": {"Content-Type": "image/jpeg"}},
        {"data": IMAGE, "headers": {"Content-Type": "image/heic; q=1"}},
        {"data": IMAGE, "headers": {"Content-Type": "application/octet-stream"}},
        {"data": IMAGE},
        {"data": iter([IMAGE[:3], IMAGE[3:]])},
    ],
)
def test_an_image_is_taken_however_it_is_sent(service: Service, rest: dict[str, Any]) -> None:
    assert num_gaussians(post(service, **rest)) == len(IMAGE)


@pytest.mark.parametrize(
    "rest",
    [{"files": {"file": IMAGE}}, {"json": {"image": B64}}, {"data": IMAGE, "headers": {"Content-Type": "image/png"}}],
)
def test_options_of_the_query_count_with_every_body(service: Service, rest: dict[str, Any]) -> None:
    assert num_gaussians(post(service, "?max_gaussians=4", **rest)) == 4


def test_the_focal_length_of_a_query_is_honoured(service: Service) -> None:
    with serving(small_lift) as lift:
        root = Path(__file__).parents[2] / "examples"
        files = {"file": (root / "room.jpg").read_bytes(), "depth": (root / "room.depth.png").read_bytes()}
        told = requests.post(f"{lift.url}/predict?f_px=1200&max_gaussians=5", files=files, timeout=60).json()[
            "metadata"
        ]
        assert (told["focal_length"], told["focal_length_source"]) == (1200, "caller")


def test_numbers_and_booleans_of_json_are_options(service: Service) -> None:
    values = {"image": B64, "max_gaussians": 5, "center": True, "scale": 2.0, "axes": "opengl", "output_format": "ply"}
    assert num_gaussians(post(service, json=values)) == 5


def test_urls_are_fetched_for_json_and_from_the_query(service: Service, site: Site) -> None:
    url = site.url("/a.jpg", says(IMAGE))
    assert num_gaussians(post(service, json={"image_url": url, "depth_url": url})) == len(IMAGE)
    assert num_gaussians(requests.post(f"{service.url}/predict/ply", params={"image_url": url}, timeout=30)) == len(
        IMAGE
    )


@pytest.mark.parametrize(
    ("query", "rest", "code", "message"),
    [
        ("", {"files": {"photo": IMAGE}}, "invalid_input", "unknown field photo: send the image as file"),
        ("", {"json": {"photo": B64}}, "invalid_image", "unknown field photo: give file or image_url"),
        ("", {"data": {"picture": B64}}, "invalid_image", "unknown field picture"),
        ("", {"files": {"file": IMAGE, "mask": b"1"}}, "invalid_input", "unknown field mask"),
        ("?colour=red", {"files": {"file": IMAGE}}, "invalid_option", "unknown option colour"),
        ("?f_px=wide", {"files": {"file": IMAGE}}, "invalid_option", "f_px|focal_length_px"),
        ("?scale=2", {"files": {"file": IMAGE}, "data": {"scale": "2"}}, "invalid_input", "scale is given twice"),
        ("?scale=2&scale=3", {"files": {"file": IMAGE}}, "invalid_input", "scale is given twice"),
        ("?f_px=9", {"json": {"image": B64, "focal_length_px": 9}}, "invalid_option", "both given"),
        ("?output_format=spz", {"data": IMAGE}, "invalid_option", "the path says 'ply'"),
        ("", {"files": {"file": IMAGE, "image": IMAGE}}, "invalid_image", "file and image are both given"),
        ("", {"json": {"image": B64, "image_b64": B64}}, "invalid_image", "image and image_b64 are both given"),
        ("", {"json": {"image": B64, "image_url": "https://a.example"}}, "invalid_image", "both given"),
        ("?image_url=https://a.example", {"data": IMAGE}, "invalid_image", "both given"),
        ("", {"json": {"image": 3}}, "invalid_input", "image is of type int: give base64 text"),
        ("", {"json": {"image": "https://a.example/b.jpg"}}, "invalid_input", "give it as image_url"),
        ("", {"json": {"image": "data:image/svg+xml,<svg/>"}}, "invalid_input", "not base64"),
        (
            "",
            {"json": {"image_url": ["https://a.example"]}},
            "invalid_input",
            "image_url is of type list: give an http",
        ),
        ("", {"files": {"fov": IMAGE, "file": IMAGE}}, "invalid_input", "fov is given as a file: give it as text"),
        ("", {"json": {"max_gaussians": 5}}, "invalid_image", "the request has no image"),
        ("", {"json": [B64]}, "invalid_input", "the body is of type list: send an object with image"),
        ("", {"json": {"image": B64, "scale": [1]}}, "invalid_option", "scale is"),
        ("", {"data": b""}, "invalid_image", "the request has no image"),
        ("", {"data": b"{", "headers": {"Content-Type": "application/json"}}, "invalid_input", "the body is not JSON"),
        ("", {"data": b"[" * 9999, "headers": {"Content-Type": "application/json"}}, "invalid_input", "not JSON"),
        (
            "",
            {"data": "text", "headers": {"Content-Type": "text/plain"}},
            "invalid_input",
            "the body is of type 'text/plain'",
        ),
    ],
)
def test_a_body_that_cannot_be_used_is_refused_with_what_to_send(
    service: Service, query: str, rest: dict[str, Any], code: str, message: str
) -> None:
    answer = post(service, query, **rest)
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
    assert any(part in answer.json()["error"] for part in message.split("|")), answer.text


def test_an_image_that_curl_sends_as_a_form_is_explained(service: Service, tmp_path: Path) -> None:
    """`--data-binary` without a type, which curl calls a form."""
    (tmp_path / "photo.jpg").write_bytes(bytes(range(256)) * 4)
    command = ["curl", "-s", "--data-binary", f"@{tmp_path / 'photo.jpg'}", f"{service.url}/predict/ply"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=30).stdout)
    assert "-F file=@photo.jpg" in told["error"]


def test_json_beyond_its_limit_is_refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_JSON_BYTES", 100)
    answer = post(service, json={"image": base64.b64encode(bytes(100)).decode()})
    assert (answer.status_code, answer.json()["code"]) == (413, "request_too_large")
    assert "send a form" in answer.json()["error"]


def test_a_file_on_the_disk_arrives_whole(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_SPOOLED_BYTES", 1000)
    large = bytes(range(256)) * 80
    text = base64.b64encode(large).decode()
    for rest in ({"data": large}, {"json": {"image": text}}, {"files": {"image": large}}):
        answer = requests.post(f"{service.url}/predict?max_gaussians=1", timeout=60, **rest)
        assert answer.json()["metadata"]["image_size"] == [len(large), 1]


def test_heads_are_answered_like_gets_without_a_body(service: Service) -> None:
    for path in ("/", "/health", "/metrics", "/openapi.json", "/docs"):
        head, get = (requests.request(method, f"{service.url}{path}", timeout=10) for method in ("HEAD", "GET"))
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Type"] == get.headers["Content-Type"]
    assert requests.head(f"{service.url}/progress/none", timeout=10).status_code == 404
    assert requests.head(f"{service.url}/predict", timeout=10).status_code == 405


@pytest.mark.parametrize(
    ("sent", "header"),
    [
        ("beach.jpg", 'attachment; filename="beach.ply"'),
        ("the beach.jpg", 'attachment; filename="the_beach.ply"'),
        ("Strände.jpg", "attachment; filename=\"Strande.ply\"; filename*=UTF-8''Str%C3%A4nde.ply"),
        ("\u6d77.heic", "attachment; filename=\"splat.ply\"; filename*=UTF-8''%E6%B5%B7.ply"),
    ],
)
def test_a_download_has_a_name_that_every_client_reads(service: Service, sent: str, header: str) -> None:
    answer = post(service, files={"file": (sent, IMAGE)})
    assert answer.headers["Content-Disposition"] == header

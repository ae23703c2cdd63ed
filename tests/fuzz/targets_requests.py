"""Fuzzing of requests at every frontend, and of the servers that their URLs lead to."""

from __future__ import annotations

import base64
import functools
import json
import socket
from typing import Any, cast

from sharp_cog.config.dataset import DatasetSettings
from sharp_cog.config.options import PredictOptions
from sharp_cog.config.services import ServiceSettings
from sharp_cog.config.settings import Settings
from sharp_cog.errors import FetchError, InputError, OptionError, SettingError
from sharp_cog.serving import inputs, modal_app
from sharp_cog.serving.fetch import fetch
from sharp_cog.serving.runpod import create_handler
from tests.fuzz.asgi import in_process, judge
from tests.fuzz.harness import Target
from tests.fuzz.raw_server import raw, raw_server
from tests.gated import Gated

OPEN = ServiceSettings(fetch_private=True, fetch_seconds=5, fetch_megabytes=1)
CLOSED = ServiceSettings(fetch_seconds=5)

# ---- HTTP


def http_seeds() -> list[bytes]:
    part = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    parts = (
        part % (b"file", b'; filename="beach.jpg"\r\nContent-Type: image/jpeg', b"picture"),
        part % (b"depth", b'; filename="beach.npy"', b"depth"),
        part % (b"f_px", b"", b"900"),
        part % (b"max_gaussians", b"", b"5"),
        part % (b"center", b"", b"true"),
    )
    form = b"".join(parts) + b"--b--\r\n"
    multipart = b"Content-Type: multipart/form-data; boundary=b; charset=utf-8\r\nContent-Length: %d\r\n"
    more = b"X-Request-Id: beach-1\r\nAccept-Encoding: gzip;q=0.5, br\r\nRange: bytes=0-9\r\nHost: a\r\n"
    json_body = json.dumps({"image": b64(b"picture"), "depth": "data:;base64,YQ==", "max_gaussians": 5}).encode()
    return [
        b"POST /predict/spz HTTP/1.1\r\n" + multipart % len(form) + more + b"\r\n" + form,
        b"POST /predict?scale=2 HTTP/1.1\r\nAccept: application/x-npz\r\n" + multipart % len(form) + b"\r\n" + form,
        b"POST /predict HTTP/1.1\r\n" + multipart % len(form) + b"\r\n" + form,
        b"POST /predict/splat?f_px=9 HTTP/1.1\r\nContent-Type: application/json\r\n\r\n" + json_body,
        b"POST /predict/splat?max_gaussians=2&center=1 HTTP/1.1\r\nContent-Type: image/jpeg\r\n\r\npicture",
        b"POST /predict/splat HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded\r\n\r\nimage=cGljdHVyZQ==",
        b"GET / HTTP/1.1\r\nAccept: text/html\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
    ]


def ask(content: bytes) -> None:
    head, _, body = content.partition(b"\r\n\r\n")
    line, *lines = head.split(b"\r\n")
    method, _, rest = line.decode("latin-1").partition(" ")
    headers = [(name.strip(), value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    judge(in_process().ask(method.upper(), rest.partition(" ")[0] or "/", headers, body))


# ---- RunPod, Modal, options


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def event_seeds() -> list[bytes]:
    picture = {"image": b64(b"picture"), "depth": b64(b"depth"), "format": "splat", "f_px": 900, "center": True}
    options = {"image_b64": f"data:image/png;base64,{b64(b'abc')}", "max_gaussians": 2, "min_opacity": 0.0}
    many = {"images": [picture, {"image": b64(b"ab"), "spz_version": 3}], "scale": 2.0, "axes": "opengl"}
    return [json.dumps(values).encode() for values in (picture, options, many)]


@functools.cache
def handler() -> Any:
    return create_handler(Gated(), CLOSED)


def answer_event(content: bytes) -> None:
    values = read(content)
    answer = handler()({"id": "job-1", "input": values})
    json.dumps(answer).encode()
    results = answer.get("results", [answer])
    for result in results:
        assert ("error" in result) == ("code" in result)
        assert result.get("code") != "internal_error", result
    if "error" in answer:
        refused(answer["error"], answer["code"])


def refused(message: str, code: str) -> None:
    error = InputError(message)
    error.code = code
    raise error


def read(content: bytes) -> Any:
    """Return the value that a platform parses from the bytes before it calls us."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return content.decode("latin-1")


def options_seeds() -> list[bytes]:
    form = {"f_px": "900", "format": "spz", "spz_version": "4", "center": "on", "max_gaussians": "1000"}
    numbers = {"focal_length_mm": 28, "depth_scale": 2, "depth_offset": -1.5, "back_surface_factor": 1.5, "scale": 0.1}
    return [json.dumps(values).encode() for values in (form, numbers, {"output_format": "glb", "axes": "opengl"})]


def make_options(content: bytes) -> None:
    values = read(content)
    options = inputs.options_from(values if isinstance(values, dict) else {"scale": values})
    assert PredictOptions.from_mapping({"output_format": options.output_format}).output_format == options.output_format


def modal_seeds() -> list[bytes]:
    return [json.dumps({"f_px": 900, "max_gaussians": 3}).encode(), b'{"depth_bytes": null, "output_format": "splat"}']


@functools.cache
def modal_class() -> Any:
    """Return the class behind the functions on Modal, with its own pipeline."""
    sharp = cast(Any, modal_app.Sharp)._get_user_cls()()
    sharp.pipeline = Gated()
    return sharp


def call_modal(content: bytes) -> None:
    values = read(content)
    values = values if isinstance(values, dict) else {"f_px": values}
    modal_class()._predict(values.pop("image_bytes", content or b"a"), values)


# ---- URLs and the servers behind them

URLS = (
    "https://example.com/a%20b.jpg?signature=x%2By",
    "http://127.0.0.1:8000/beach.jpg#top",
    "http://[::1]:80/\u00e4/\u6f22.png?q=1&r=2",
    "http://user:pass@sch\u00f6n.example:443/../a;b=c",
)


def refuse_url(content: bytes) -> None:
    """Fetch a URL, which must fail: it is private, or its host is unknown here."""
    raw_server()
    fetch(content.decode("utf-8", "surrogateescape"), CLOSED)
    raise AssertionError("it was fetched")


def fetch_seeds() -> list[bytes]:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\npicture\r\n4\r\nmore\r\n0\r\nA: b\r\n\r\n"
    return [raw(b"picture", "Content-Type: image/jpeg", "Content-Encoding: identity"), chunked]


def fetch_answer(content: bytes) -> None:
    server = raw_server()
    server.answer = content
    fetched = fetch(f"{server.url}/a.jpg", OPEN)
    assert fetched in content or b"chunked" in content.lower()


def refused_url(content: bytes) -> None:
    try:
        refuse_url(content)
    except FetchError as error:
        text = str(error)
    assert text.isprintable()
    assert len(text) < 300


# ---- settings


def settings_seeds() -> list[bytes]:
    return [
        b"SHARP_MODEL=lift\nSHARP_DEVICE=cpu\nSHARP_MAX_MEGAPIXELS=50\nSHARP_CHECKPOINT_URL=https://example.com/a.pt\n"
        b"SHARP_CHECKPOINT=~/a.pt\nSHARP_CACHE_WEIGHTS=1\nSHARP_PRECISION=float16\nSHARP_CHECKPOINT_SHA256=none\n",
        b"SHARP_QUEUE_SIZE=4\nSHARP_REQUEST_SECONDS=60\nSHARP_FETCH_PRIVATE=true\nSHARP_FETCH_SECONDS=2.5\n"
        b"BUCKET_ENDPOINT_URL=https://s3.example.com\nBUCKET_ACCESS_KEY_ID=a\nBUCKET_SECRET_ACCESS_KEY=b\n"
        b"BUCKET_NAME=c\nSHARP_MODAL_CONCURRENCY=2\nSHARP_KEPT_PREDICTIONS=0\n",
        b"SOURCE=search\nUNSPLASH_ACCESS_KEY=key\nQUERIES=sea,forest\nFORMATS=ply,spz\nMAX_IMAGES=10\nRUN_ID=a\n"
        b"HF_UPLOAD=1\nHF_REPO_ID=a/b\nHF_INDEX_FLUSH_SECS=30\nCLAIMS_DIR=~/claims\nGSPLAT_BASE=https://gsplat.org\n",
    ]


def read_settings(content: bytes) -> None:
    lines = (line.partition("=") for line in content.decode("utf-8", "surrogateescape").split("\n"))
    environment = {"SHARP_INPUT_DIR": ".", **{name: value for name, _, value in lines}}
    settings, service = Settings.from_environment(environment), ServiceSettings.from_environment(environment)
    assert settings.max_pixels >= 0
    # What the settings are used for when a request comes.
    int(service.max_body_megabytes * 1e6), int(service.fetch_megabytes * 1e6), int(service.runpod_sync_megabytes * 1e6)
    socket.socket().settimeout(service.fetch_seconds)
    run = DatasetSettings.build(environment)
    run.run_dir.exists()


TARGETS = (
    Target("request-http", http_seeds, ask, (InputError,)),
    Target("request-runpod", event_seeds, answer_event, (InputError,)),
    Target("request-modal", modal_seeds, call_modal, (InputError,)),
    Target("request-options", options_seeds, make_options, (OptionError,)),
    Target("request-url", lambda: [url.encode() for url in URLS], refused_url, ()),
    Target("fetch-answer", fetch_seeds, fetch_answer, (FetchError,)),
    Target("settings", settings_seeds, read_settings, (SettingError,)),
)

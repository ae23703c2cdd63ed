"""Every environment variable of the model and of the service changes something that can be seen.

The classes of the settings say what there is; a setting without a row fails.
"""

from __future__ import annotations

import base64
import io
import os
import runpy
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import boto3
import modal
import pytest
import requests
import runpod
import torch
from PIL import Image

import sharp_cog.pipeline.pipeline
from sharp_cog import formats
from sharp_cog.config.options import OutputOptions
from sharp_cog.config.settings import ServiceSettings, Settings, _in_environment
from sharp_cog.errors import SharpError
from sharp_cog.imaging import images
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.runtime import checkpoint, weights
from sharp_cog.serving import modal_image
from sharp_cog.serving import runpod as worker
from sharp_cog.serving.fetch import fetch
from tests.formats.test_html import PAGE
from tests.gated import Gated
from tests.parity import state
from tests.service import serving
from tests.serving.test_fetch import Site, says

pytestmark = pytest.mark.filterwarnings("ignore:.*executing locally and will not have access:UserWarning")

Environment = Mapping[str, str]
Observe = Callable[[Environment, Path], object]
"""What is to be seen with these variables, in a folder with files that they may name."""


def code_of(act: Callable[[], object]) -> object:
    """What comes of it, or the error's code."""
    try:
        return act()
    except SharpError as error:
        return error.code


def loaded(environment: Environment, folder: Path) -> object:
    """The model that is made, and how; SHARP's runner is stood in for."""
    made: dict[str, Any] = {}

    def runner(source: object, **arguments: Any) -> Callable[..., None]:
        made.update(arguments)
        return lambda: None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharp_cog.pipeline.pipeline, "SharpRunner", runner)
        pipeline = SharpPipeline.load(Settings.from_environment(environment))
    return type(pipeline.predictor).__name__, str(pipeline.device), made


def located(environment: Environment, folder: Path) -> object:
    found = code_of(lambda: checkpoint.locate(Settings.from_environment(environment)))
    return found.name if isinstance(found, Path) else found


def verified(environment: Environment, folder: Path) -> object:
    return code_of(lambda: checkpoint.verify(folder / "other.pt", Settings.from_environment(environment)))


def decoded(environment: Environment, folder: Path) -> object:
    file = io.BytesIO()
    Image.new("RGB", (600, 400)).save(file, "PNG")
    limit = Settings.from_environment(environment).max_pixels
    return code_of(lambda: images.decode(file.getvalue(), max_pixels=limit).camera.width)


def page(environment: Environment, folder: Path) -> object:
    viewer_dir = Settings.from_environment(environment).viewer_dir
    return code_of(lambda: formats.check(OutputOptions(output_format="html"), viewer_dir=viewer_dir))


def kept_weights(environment: Environment, folder: Path) -> object:
    settings = Settings.from_environment({**environment, "SHARP_CHECKPOINT": str(folder / "tiny.pt")})
    return weights.find(settings, torch.bfloat16).path.name


def answered(environment: Environment, folder: Path) -> object:
    """A body of 0.3 MB, and the same picture in two formats."""
    pipeline = Gated()
    with serving(lambda: pipeline, ServiceSettings.from_environment(environment)) as service:
        large = requests.post(f"{service.url}/predict/ply", files={"file": bytes(300_000)}, timeout=60)
        for name in ("ply", "splat"):
            requests.post(f"{service.url}/predict/{name}", files={"file": b"abc"}, timeout=60)
    return large.status_code, pipeline.predicted[-2:].count(3)


def until(url: str, condition: Callable[[dict[str, Any]], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition(requests.get(f"{url}/health", timeout=10).json()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def queued(environment: Environment, folder: Path) -> object:
    """What a second request is told while the first is on the device."""
    pipeline = Gated(is_open=False)
    settings = ServiceSettings.from_environment(environment)
    with serving(lambda: pipeline, settings) as service, ThreadPoolExecutor() as pool:
        ask = partial(requests.post, f"{service.url}/predict/ply", files={"file": b"a"}, timeout=60)
        one = pool.submit(ask)
        until(service.url, lambda health: health["requests"] == 1)
        other = pool.submit(ask)
        until(service.url, lambda health: other.done() or health["requests"] == 2)
        pipeline.gate.set()
        return one.result().status_code, other.result().status_code


def waited(environment: Environment, folder: Path) -> object:
    """What a request is told that the device keeps for a second."""
    pipeline = Gated(is_open=False)
    with serving(lambda: pipeline, ServiceSettings.from_environment(environment)) as service:
        timer = threading.Timer(1.0, pipeline.gate.set)
        timer.start()
        status = requests.post(f"{service.url}/predict/ply", files={"file": b"a"}, timeout=60).status_code
        timer.join()
    return status


def fetched(environment: Environment, folder: Path) -> object:
    """Two megabytes that come after most of a second."""
    site = Site()

    def late(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.6)
        says(bytes(2_000_000))(handler)

    try:
        return code_of(lambda: len(fetch(site.url("/a", late), ServiceSettings.from_environment(environment))))
    finally:
        site.server.shutdown()
        site.server.server_close()


def ran(environment: Environment, folder: Path, *, id_: str = "job") -> object:
    """What RunPod's worker answers, whether it tells how far it is, and what it asks of a store."""
    handlers: list[Callable[[dict[str, Any]], dict[str, Any]]] = []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(worker, "READY", folder / "ready")
        patch.setattr(SharpPipeline, "load", lambda settings: Gated())
        patch.setattr(runpod.serverless, "start", lambda config: handlers.append(config["handler"]))
        tell, client = MagicMock(), MagicMock()
        patch.setattr(runpod.serverless, "progress_update", tell)
        patch.setattr(boto3, "client", client)
        client.return_value.generate_presigned_url.return_value = "https://store.example/splat"
        worker.main()
        answer = handlers[0]({"id": id_, "input": {"image": base64.b64encode(bytes(2000)).decode()}})
    signed = client.return_value.generate_presigned_url.call_args
    store = {name: value for each in client.call_args_list for name, value in each.kwargs.items() if name != "config"}
    return answer.get("code"), answer.get("url"), tell.called, str(signed), store


def deployed(environment: Environment, folder: Path) -> object:
    """What Modal is asked for, when its app is read."""
    asked: list[object] = []
    concurrent = modal.concurrent

    def noted(**arguments: Any) -> Any:
        asked.append(arguments)
        return concurrent(**arguments)

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(modal, "concurrent", noted)
        found = runpy.run_module("sharp_cog.serving.modal_app")
    resources = modal_image.resources(found["SETTINGS"])
    return asked, {name: value for name, value in resources.items() if name not in ("image", "secrets", "volumes")}


BUCKET = {
    "BUCKET_ENDPOINT_URL": "https://one.example",
    "BUCKET_ACCESS_KEY_ID": "one",
    "BUCKET_SECRET_ACCESS_KEY": "one",
    "BUCKET_NAME": "one",
}
OPEN = {"SHARP_FETCH_PRIVATE": "1"}
TINY = {"SHARP_CHECKPOINT": "{folder}/tiny.pt", "SHARP_DEVICE": "cpu"}
CACHE = {"SHARP_CACHE_DIR": "{folder}/cache"}

ROWS: dict[str, tuple[Observe, Environment, str]] = {
    "model": (loaded, TINY, "lift"),
    "checkpoint": (located, CACHE, "{folder}/tiny.pt"),
    "cache_dir": (located, CACHE, "{folder}"),
    "checkpoint_url": (located, CACHE, "https://example.com/older.pt"),
    "checkpoint_sha256": (verified, {}, "none"),
    "device": (lambda environment, folder: code_of(lambda: loaded(environment, folder)), TINY, "abacus"),
    "max_megapixels": (decoded, {}, "0.1"),
    "viewer_dir": (page, {"SHARP_VIEWER_DIR": "{folder}/none"}, "{folder}"),
    "precision": (loaded, {**TINY, "SHARP_PRECISION": "float32"}, "bfloat16"),
    "cache_weights": (kept_weights, {}, "1"),
    "keep_encoding": (loaded, TINY, "0"),
    "cuda_graphs": (loaded, TINY, "0"),
    "queue_size": (queued, {}, "0"),
    "request_seconds": (waited, {}, "0.3"),
    "max_body_megabytes": (answered, {}, "0.1"),
    "kept_predictions": (answered, {}, "0"),
    "fetch_megabytes": (fetched, OPEN, "1"),
    "fetch_seconds": (fetched, OPEN, "0.2"),
    "fetch_private": (fetched, {}, "1"),
    "runpod_sync_megabytes": (partial(ran, id_="sync-1"), {}, "0.05"),
    "runpod_async_megabytes": (ran, {}, "0.05"),
    "runpod_webhook": (ran, {}, "https://runpod.example/done"),
    "bucket_endpoint_url": (ran, BUCKET, "https://other.example"),
    "bucket_access_key_id": (ran, BUCKET, "other"),
    "bucket_secret_access_key": (ran, BUCKET, "other"),
    "bucket_name": (ran, BUCKET, "other"),
    "modal_gpu": (deployed, {}, "T4"),
    "modal_idle_seconds": (deployed, {}, "60"),
    "modal_concurrency": (deployed, {}, "2"),
    "modal_timeout_seconds": (deployed, {}, "90"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that variables name."""
    for name in [name for name in os.environ if name.startswith(("SHARP_", "BUCKET_", "RUNPOD_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "cache").mkdir()
    for name in ("tiny.pt", "other.pt", "sharp_2572gikvuh.pt", "cache/older.pt"):
        torch.save({}, tmp_path / name)
    (tmp_path / "index.html").write_text(PAGE)
    return tmp_path


def test_the_table_holds_every_setting() -> None:
    assert ROWS.keys() == {setting.name for settings in (Settings, ServiceSettings) for setting in fields(settings)}


@pytest.mark.parametrize("name", ROWS)
def test_every_variable_changes_something(name: str, folder: Path) -> None:
    observe, base, other = ROWS[name]
    if name == "cache_weights":
        torch.save(state("tiny"), folder / "tiny.pt")
    environment = {variable: value.format(folder=folder) for variable, value in base.items()}
    without = observe(environment, folder)
    assert observe(environment, folder) == without, "it must be the variable that makes the difference"
    assert observe({**environment, _in_environment(name): other.format(folder=folder)}, folder) != without

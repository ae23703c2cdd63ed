"""The frontends of the product in this process, each as a function that requests one splat."""

from __future__ import annotations

import base64
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cog
import requests

import predict
from sharp_cog.config.services import ServiceSettings
from sharp_cog.files.scratch import ScratchFolder
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.serving import runpod
from sharp_cog.serving.cog_worker import Watchdog
from tests.images import npy as depth_map
from tests.images import png as picture
from tests.service import serving

OPTIONS = {"max_gaussians": 1000}


@dataclass(frozen=True, kw_only=True)
class Frontend:
    """One frontend.

    Attributes:
        ask: Requests a splat; returns the bytes of a .ply, or the code of an error.
        is_healthy: Reports whether the health check passes.
    """

    ask: Callable[[], bytes | str]
    is_healthy: Callable[[], bool]


@contextmanager
def by_cog(pipeline: SharpPipeline, folder: Path) -> Iterator[Frontend]:
    """Open Cog's predictor. Its inputs are files in the folder, where Cog puts them too."""
    runner = predict.Predictor()
    runner.pipeline, runner.folder = pipeline, ScratchFolder()
    runner.watchdog = Watchdog(600.0)
    defaults = {
        name: parameter.default.default
        for name, parameter in inspect.signature(predict.Predictor.run).parameters.items()
        if name not in ("self", "image")
    }
    (folder / "photo.png").write_bytes(picture())
    (folder / "depth.npy").write_bytes(depth_map())
    inputs = {"image": cog.Path(folder / "photo.png"), "depth": cog.Path(folder / "depth.npy")}

    def ask() -> bytes | str:
        try:
            output = runner.run(**{**defaults, **inputs, **OPTIONS})
        except RuntimeError as error:
            return str(error).partition(":")[0]
        content = bytes(output.read_bytes())
        output.unlink()  # Cog removes a file after sending it.
        return content

    try:
        yield Frontend(ask=ask, is_healthy=runner.healthcheck)
    finally:
        runner.folder.remove()


@contextmanager
def by_http(pipeline: SharpPipeline, folder: Path) -> Iterator[Frontend]:
    """Start the HTTP service on a socket."""
    with serving(lambda: pipeline, ServiceSettings(kept_predictions=0, min_free_megabytes=0)) as service:

        def ask() -> bytes | str:
            files = {"file": picture(), "depth": depth_map()}
            answer = requests.post(f"{service.url}/predict/ply", files=files, data=OPTIONS, timeout=60)
            return answer.content if answer.status_code == 200 else str(answer.json()["code"])

        yield Frontend(ask=ask, is_healthy=lambda: requests.get(f"{service.url}/health", timeout=10).status_code == 200)


@contextmanager
def by_runpod(pipeline: SharpPipeline, folder: Path) -> Iterator[Frontend]:
    """Open RunPod's handler. `runpod.READY` must be in the test's own folder."""
    handler = runpod.create_handler(pipeline, ServiceSettings())
    is_refreshed: list[bool] = []
    runpod.READY.touch()

    def ask() -> bytes | str:
        given = {"image": picture(), "depth": depth_map()}
        values = {name: base64.b64encode(content).decode() for name, content in given.items()}
        answer = handler({"id": "job", "input": {**values, **OPTIONS}})
        is_refreshed.append(answer.get("refresh_worker", False))
        return base64.b64decode(answer["ply"]) if "ply" in answer else str(answer["code"])

    try:
        yield Frontend(ask=ask, is_healthy=lambda: runpod.READY.exists() and not is_refreshed[-1])
    finally:
        runpod.READY.unlink(missing_ok=True)


FRONTENDS = {"Cog": by_cog, "HTTP": by_http, "RunPod": by_runpod}

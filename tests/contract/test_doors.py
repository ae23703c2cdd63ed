"""One table of requests through every door: the same options, the same bytes, the same errors."""

from __future__ import annotations

import base64
import inspect
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import cog
import numpy as np
import pytest
import requests
import torch
from PIL import Image

import predict
from sharp_cog.cli import main
from sharp_cog.config.options import PredictOptions
from sharp_cog.config.settings import ServiceSettings, Settings
from sharp_cog.errors import OptionError, PredictionError
from sharp_cog.files.scratch import ScratchFolder
from sharp_cog.formats import FORMATS
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.pipeline.prediction import Decoded
from sharp_cog.serving import modal_app
from sharp_cog.serving.runpod import create_handler
from tests.data.parity import synthetic
from tests.service import Service, serving

pytestmark = pytest.mark.filterwarnings("ignore:.*executing locally and will not have access:UserWarning")

GOOD: list[dict[str, Any]] = [
    {},
    {"focal_length_px": 900.0},
    {"focal_length_mm": 28.0, "output_format": "apple_ply"},
    {"output_format": "spz", "axes": "opencv", "max_gaussians": 400_000, "min_opacity": 0.05},
    {"output_format": "sog", "axes": "opengl"},
    {"output_format": "glb", "axes": "opengl", "max_gaussians": 1},
    {"depth_mode": "fixed", "back_surface_factor": 1.5, "depth_scale": 2.0, "depth_offset": -0.25},
    {"depth_mode": "align", "depth_fit": "median"},
    {"depth_format": "inverse-relative", "depth_fit": "none"},
    {"depth_format": "relative", "depth_fit": "affine", "depth_scale": 0.001},
]
BAD: list[tuple[dict[str, Any], str]] = [
    ({"focal_length_px": 900.0, "focal_length_mm": 28.0}, "are both given"),
    ({"output_format": "glb", "axes": "opencv"}, "glb always has opengl"),
    ({"output_format": "html", "axes": "opengl"}, "html always has opencv"),
    ({"depth_mode": "align", "back_surface_factor": 2.0}, "which has SHARP's own back surface"),
    ({"min_opacity": 1.5}, "give a number from 0 to 1"),
    ({"back_surface_factor": 0.5}, "give a number from 1 to 100"),
    ({"depth_scale": 0.0}, "give a number from 0.001"),
]


def png(width: int = 96, height: int = 64) -> bytes:
    file = io.BytesIO()
    Image.fromarray(synthetic.photograph(width, height, 3)).save(file, "PNG")
    return file.getvalue()


def npy(width: int = 96, height: int = 64) -> bytes:
    file = io.BytesIO()
    np.save(file, np.linspace(1.5, 3.0, width * height, dtype=np.float32).reshape(height, width))
    return file.getvalue()


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for, whatever the door."""

    image: bytes = png()
    depth: bytes | None = npy()
    options: dict[str, Any]


SPLATS = [
    Request(options={"max_gaussians": 500}),
    Request(options={"max_gaussians": 500, "output_format": "spz", "focal_length_px": 80.0}),
    Request(options={"max_gaussians": 400, "output_format": "splat", "focal_length_mm": 50.0}),
    Request(options={"min_opacity": 0.9, "max_gaussians": 300, "output_format": "sog", "axes": "opengl"}),
    Request(options={"max_gaussians": 200, "output_format": "glb"}),
    Request(options={"max_gaussians": 200, "output_format": "compressed_ply"}),
    Request(options={"max_gaussians": 200, "output_format": "apple_ply", "depth_format": "relative"}),
]
REFUSED = [
    (Request(image=b"no picture at all", options={}), "invalid_image"),
    (Request(image=png()[:200], options={}), "invalid_image"),
    (Request(depth=b"no depth map", options={}), "invalid_depth"),
    (Request(depth=npy(64, 96), options={}), "invalid_depth"),
    (Request(depth=None, options={}), "invalid_depth"),
    (Request(options={"min_opacity": 7.0}), "invalid_option"),
    (Request(options={"output_format": "glb", "axes": "opencv"}), "invalid_option"),
]

Outcome = bytes | str
"""The splat, or an error's code."""


def by_python(request: Request, pipeline: SharpPipeline, folder: Path) -> Outcome:
    prediction = pipeline(request.image, PredictOptions.from_mapping(request.options), depth_bytes=request.depth)
    return prediction.write(folder / "python").read_bytes()


class Doors:
    """Every door, open on one pipeline."""

    def __init__(self, pipeline: SharpPipeline, service: Service, folder: Path) -> None:
        self.pipeline, self.service, self.folder = pipeline, service, folder
        (folder / "outputs").mkdir()

    def ask(self, door: str, request: Request) -> Outcome:
        """Asks one."""
        found: Outcome = getattr(self, door)(request)
        return found

    def command_line(self, request: Request) -> Outcome:
        (self.folder / "photo.bin").write_bytes(request.image)
        names = {"output_format": "format"}
        flags = [f"--{names.get(name, name).replace('_', '-')}={value}" for name, value in request.options.items()]
        if request.depth is not None:
            (self.folder / "depth.bin").write_bytes(request.depth)
            flags += [f"--depth={self.folder / 'depth.bin'}"]
        errors = io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stderr", errors)
            exit_code = main(["predict", str(self.folder / "photo.bin"), "-o", str(self.folder / "cli"), *flags])
        if exit_code == 0:
            return (self.folder / "cli").read_bytes()
        code = errors.getvalue().strip().rpartition("[")[2].removesuffix("]")
        assert exit_code == (1 if code == "prediction_failed" else 2), errors.getvalue()
        return code

    def cog(self, request: Request) -> Outcome:
        runner = predict.Predictor()
        runner.pipeline, runner.folder = self.pipeline, ScratchFolder()
        inputs: dict[str, Any] = {
            name: parameter.default.default
            for name, parameter in inspect.signature(predict.Predictor.run).parameters.items()
            if name not in ("self", "image")
        }
        for name, content in (("image", request.image), ("depth", request.depth)):
            if content is not None:
                (self.folder / f"cog.{name}").write_bytes(content)
                inputs[name] = cog.Path(self.folder / f"cog.{name}")
        try:
            return bytes(runner.run(**{**inputs, **request.options}).read_bytes())
        except RuntimeError as error:
            return str(error).partition(":")[0]

    def http(self, request: Request) -> Outcome:
        files = {"file": request.image, **({} if request.depth is None else {"depth": request.depth})}
        options = dict(request.options)
        where = f"{self.service.url}/predict/{options.pop('output_format', 'ply')}"
        answer = requests.post(where, files=files, data=options, timeout=60)
        if answer.status_code == 200:
            return answer.content
        body = answer.json()
        assert body.keys() == {"error", "code"}
        assert answer.status_code == (500 if body["code"] == "prediction_failed" else 422)
        return str(body["code"])

    def runpod(self, request: Request) -> Outcome:
        values = {"image": base64.b64encode(request.image).decode(), **request.options}
        if request.depth is not None:
            values["depth"] = base64.b64encode(request.depth).decode()
        answer = create_handler(self.pipeline, ServiceSettings())({"id": "job", "input": values})
        if "error" in answer:
            return str(answer["code"])
        assert answer["status"] == "success"
        return base64.b64decode(answer[request.options.get("output_format", "ply")])

    def modal(self, request: Request) -> Outcome:
        try:
            found: bytes = modal_app.predict_and_save_ply.local(
                request.image, depth_bytes=request.depth, **request.options
            )
        except (ValueError, RuntimeError) as error:
            code = str(error).partition(":")[0]
            expected = RuntimeError if code == "prediction_failed" else ValueError
            return code if type(error) is expected else f"{code} as {type(error).__name__}"
        return found


DOORS = ["command_line", "cog", "http", "runpod", "modal"]


class Reached(SharpPipeline):
    """A pipeline that keeps the options with which it is called, and goes no further."""

    def __init__(self) -> None:
        self.settings = Settings(model="lift")
        self.device = torch.device("cpu")
        self.options: list[PredictOptions | None] = []

    def decode(
        self, image_bytes: bytes, options: PredictOptions | None = None, *, depth_bytes: bytes | None = None
    ) -> NoReturn:
        self.options.append(options)
        raise PredictionError("reached")

    def predict(self, decoded: Decoded) -> NoReturn:
        raise AssertionError("decode has raised")

    def warm_up(self) -> float:
        return 0.0

    def to(self, device: str) -> SharpPipeline:
        return self


@pytest.fixture(scope="module")
def patched() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHARP_MODEL", "lift")
        yield patch


def opened(make: Callable[[], SharpPipeline], patch: pytest.MonkeyPatch, folder: Path) -> Iterator[tuple[Doors, Any]]:
    pipeline = make()
    patch.setattr(SharpPipeline, "load", lambda *args, **kwargs: pipeline)
    with serving(lambda: pipeline) as service:
        yield Doors(pipeline, service, folder), pipeline


@pytest.fixture(scope="module")
def doors(patched: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    lift = SharpPipeline.load(Settings(model="lift", device="cpu"))
    for found, _ in opened(lambda: lift, patched, tmp_path_factory.mktemp("doors")):
        yield found


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[Doors, Reached]]:
    monkeypatch.setenv("SHARP_MODEL", "lift")
    yield from opened(Reached, monkeypatch, tmp_path)


@pytest.mark.parametrize("options", GOOD, ids=str)
def test_every_door_reaches_the_pipeline_with_the_same_options(
    options: dict[str, Any], reached: tuple[Doors, Reached]
) -> None:
    doors, pipeline = reached
    expected = PredictOptions(**options)
    assert PredictOptions.from_mapping({name: str(value) for name, value in options.items()}) == expected
    for door in DOORS:
        pipeline.options.clear()
        assert doors.ask(door, Request(options=options)) == "prediction_failed", door
        assert pipeline.options == [expected], door


@pytest.mark.parametrize(("options", "message"), BAD, ids=str)
def test_every_door_refuses_the_same_options(
    options: dict[str, Any], message: str, reached: tuple[Doors, Reached]
) -> None:
    doors, pipeline = reached
    with pytest.raises(OptionError, match=message):
        PredictOptions.from_mapping(options)
    for door in DOORS:
        assert doors.ask(door, Request(options=options)) == "invalid_option", door
    assert pipeline.options == []


IN_THE_LONG_TESTS = ("splat", "spz", "glb", "compressed_ply")


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(
            each,
            id=str(each.options),
            marks=[pytest.mark.slow] if each.options.get("output_format") in IN_THE_LONG_TESTS else [],
        )
        for each in SPLATS
    ],
)
def test_every_door_gives_the_same_bytes(request_: Request, doors: Doors, tmp_path: Path) -> None:
    expected = by_python(request_, doors.pipeline, tmp_path)
    assert len(expected) > 1000
    for door in DOORS:
        assert doors.ask(door, request_) == expected, door


@pytest.mark.parametrize(("request_", "code"), REFUSED, ids=lambda value: getattr(value, "options", value))
def test_every_door_gives_the_same_errors(request_: Request, code: str, doors: Doors) -> None:
    for door in DOORS:
        assert doors.ask(door, request_) == code, door


def test_the_table_has_every_format_that_a_door_may_send() -> None:
    asked = {request.options.get("output_format", "ply") for request in SPLATS}
    assert FORMATS.keys() - asked == {"html", "mp4"}, (
        "these two need the viewer and ffmpeg, and have tests of their own"
    )

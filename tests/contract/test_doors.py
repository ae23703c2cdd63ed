"""One table of requests through every door: each must reach the pipeline as the same options, or the same error."""

from __future__ import annotations

import inspect
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import cog
import pytest
from PIL import Image

import predict
from sharp_cog.cli import main
from sharp_cog.errors import OptionError, PredictionError
from sharp_cog.options import PredictOptions
from sharp_cog.pipeline import SharpPipeline
from sharp_cog.serving.settings import Settings

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


class Reached(SharpPipeline):
    """A pipeline that keeps the options with which it is called, and goes no further."""

    def __init__(self) -> None:
        self.settings = Settings(model="lift")
        self.options: list[PredictOptions | None] = []

    def __call__(
        self, image_bytes: bytes, options: PredictOptions | None = None, *, depth_bytes: bytes | None = None
    ) -> NoReturn:
        self.options.append(options)
        raise PredictionError("reached")


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> Reached:
    pipeline = Reached()
    monkeypatch.setattr(SharpPipeline, "load", lambda settings: pipeline)
    monkeypatch.setenv("SHARP_MODEL", "lift")
    return pipeline


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (96, 64), "grey").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def by_command_line(photo: Path, request: dict[str, Any]) -> int:
    names = {"output_format": "format"}
    flags = [f"--{names.get(name, name).replace('_', '-')}={value}" for name, value in request.items()]
    return main(["predict", str(photo), *flags])


def by_cog(photo: Path, request: dict[str, Any], pipeline: SharpPipeline) -> None:
    runner = predict.Predictor()
    runner.pipeline, runner.folder = pipeline, tempfile.TemporaryDirectory()
    defaults = {
        name: parameter.default.default
        for name, parameter in inspect.signature(predict.Predictor.run).parameters.items()
        if name not in ("self", "image")
    }
    runner.run(image=cog.Path(photo), **{**defaults, **request})


@pytest.mark.parametrize("request_", GOOD, ids=str)
def test_every_door_reaches_the_pipeline_with_the_same_options(
    request_: dict[str, Any], reached: Reached, photo: Path
) -> None:
    expected = PredictOptions(**request_)
    assert PredictOptions.from_mapping({name: str(value) for name, value in request_.items()}) == expected
    assert by_command_line(photo, request_) == 1
    with pytest.raises(RuntimeError, match="prediction_failed: reached"):
        by_cog(photo, request_, reached)
    assert reached.options == [expected, expected]


@pytest.mark.parametrize(("request_", "message"), BAD, ids=str)
def test_every_door_refuses_the_same(
    request_: dict[str, Any], message: str, reached: Reached, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OptionError, match=message):
        PredictOptions.from_mapping(request_)
    assert by_command_line(photo, request_) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "[invalid_option]" in said
    with pytest.raises(RuntimeError, match=f"invalid_option: .*{message}"):
        by_cog(photo, request_, reached)
    assert reached.options == []

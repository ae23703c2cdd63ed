"""Each option changes what it says, each frontend passes on the options that it offers, and every source is read."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import requests
import torch

from sharp_cog.config.options import OutputOptions, PredictOptions
from sharp_cog.config.output_formats import LEVELS_NAME
from sharp_cog.config.parameters import FRONTENDS, parameters
from sharp_cog.config.services import ServiceSettings
from sharp_cog.config.settings import Settings
from sharp_cog.errors import PredictionError
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.pipeline.request import Request
from sharp_cog.runtime.lift import LiftPredictor
from sharp_cog.runtime.runner import SharpRunner
from sharp_cog.runtime.weights import Weights
from sharp_cog.serving import inputs, modal_app
from sharp_cog.serving.inputs import IMAGE_NAMES
from sharp_cog.serving.runpod import create_handler
from tests.depth.portraits import gdepth_jpeg
from tests.frontends import Frontends, Question, opened
from tests.images import npy, png
from tests.parity import small_state
from tests.service import serving

pytestmark = pytest.mark.filterwarnings("ignore:.*executing locally and will not have access:UserWarning")

CPU = torch.device("cpu")
VALUES: dict[str, dict[str, Any]] = {
    "output_format": {"output_format": "splat"},
    "axes": {"axes": "opengl"},
    "max_gaussians": {"max_gaussians": 5},
    "min_opacity": {"min_opacity": 0.5},
    "scale": {"scale": 2.0},
    "center": {"center": True},
    "spz_version": {"output_format": "spz", "spz_version": 4},
    "cameras_json": {"cameras_json": True},
    "glb_compression": {"output_format": "glb", "glb_compression": "spz"},
    "lod": {"output_format": "sog", "lod": 3},
    "sh_degree": {"sh_degree": 1},
    "normals": {"normals": True},
    "point_colors": {"point_colors": True},
    "focal_length_px": {"focal_length_px": 50.0},
    "focal_length_mm": {"focal_length_mm": 20.0},
    "fov": {"fov": 75.0},
    "depth_from": {"depth_from": "embedded"},
    "depth_format": {"depth_format": "inverse-relative"},
    "depth_unit": {"depth_unit": "0.5"},
    "depth_mode": {"depth_mode": "align"},
    "back_surface_factor": {"back_surface_factor": 3.0},
    "depth_fit": {"depth_fit": "median"},
    "depth_scale": {"depth_scale": 2.0},
    "depth_offset": {"depth_offset": 0.5},
    "save_internal_depth": {"save_internal_depth": True},
}
"""Options that set the named one to a value that is not the default."""
OPTIONS = {about.name: about for about in parameters(PredictOptions)}
WRITTEN = [about.name for about in parameters(OutputOptions)]
PREDICTED = [name for name in VALUES if name not in (*WRITTEN, "depth_from", "save_internal_depth")]


def test_every_option_is_tried_here() -> None:
    assert VALUES.keys() == OPTIONS.keys()
    for name, values in VALUES.items():
        assert values[name] != OPTIONS[name].default, f"{name}: the default would test nothing"


@pytest.fixture(scope="module")
def sharp() -> SharpPipeline:
    weights = Weights(state=small_state(), is_folded=False)
    return SharpPipeline(SharpRunner(weights, device=CPU, dtype=torch.float32), device=CPU, settings=Settings())


@pytest.fixture(scope="module")
def default(sharp: SharpPipeline) -> Prediction:
    return sharp(png(), depth=npy())


@pytest.mark.parametrize("name", WRITTEN)
def test_every_option_of_the_output_changes_the_file(name: str, default: Prediction, tmp_path: Path) -> None:
    without = {key: value for key, value in VALUES[name].items() if key != name}
    files = []
    for values in (without, VALUES[name]):
        options = PredictOptions(**values)
        target = tmp_path / (LEVELS_NAME if name == "lod" else "splat")
        path = default.with_options(options).write(target, output_format=options.output_format)
        # Some options add a file beside the splat.
        files.append((path.read_bytes(), sorted(file.name for file in tmp_path.iterdir())))
    assert files[0] != files[1]


@pytest.mark.parametrize("name", PREDICTED)
def test_every_option_of_the_prediction_changes_the_gaussians(
    name: str, sharp: SharpPipeline, default: Prediction
) -> None:
    other = sharp(png(), PredictOptions(**VALUES[name]), depth=npy())
    assert not torch.allclose(default.gaussians.means, other.gaussians.means, rtol=1e-3)


def test_the_depth_in_a_photograph_is_taken_only_on_request(sharp: SharpPipeline) -> None:
    photograph = gdepth_jpeg()
    without, taken = (sharp(photograph, PredictOptions(depth_from=name)) for name in ("auto", "embedded"))
    assert not torch.allclose(without.gaussians.means, taken.gaussians.means, rtol=1e-3)
    assert [text.startswith("depth taken from the photograph") for text in taken.assumptions] == [True, False]
    assert torch.equal(sharp(photograph, depth="embedded").gaussians.means, taken.gaussians.means)


def test_the_monodepth_is_returned_only_on_request(sharp: SharpPipeline, default: Prediction) -> None:
    assert default.monodepth_m is None
    asked = sharp(png(), PredictOptions(save_internal_depth=True), depth=npy())
    assert asked.monodepth_m is not None
    assert asked.monodepth_m.shape == (2, 512, 512)


class Recorder(SharpPipeline):
    """A pipeline that records each request and then fails."""

    def __init__(self) -> None:
        super().__init__(LiftPredictor(device=CPU), device=CPU, settings=Settings(model="lift", device="cpu"))
        self.requests: list[Request] = []

    def decode(self, request: Request) -> NoReturn:
        self.requests.append(request)
        raise PredictionError("recorded")

    def warm_up(self) -> float:
        return 0.0


RECORDED = PredictionError.code
"""Error code of a frontend whose pipeline has recorded the request."""


@pytest.fixture(scope="module")
def frontends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontends]:
    with opened(Recorder(), tmp_path_factory.mktemp("frontends")) as found:
        yield found


def recorded(frontends: Frontends, frontend: str, options: dict[str, Any]) -> PredictOptions:
    """Return the options that reach the pipeline behind a frontend."""
    assert isinstance(frontends.pipeline, Recorder)
    frontends.pipeline.requests.clear()
    # A map of the caller's and the photograph's own exclude each other.
    depth = None if "depth_from" in options else npy()
    assert frontends.ask(frontend, Question(depth=depth, options=options)).code == RECORDED, options
    (request,) = frontends.pipeline.requests
    return request.options


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_every_frontend_passes_on_the_options_that_it_offers(frontend: str, frontends: Frontends) -> None:
    for name, about in OPTIONS.items():
        if frontend in about.frontends:
            assert recorded(frontends, frontend, VALUES[name]) == PredictOptions(**VALUES[name]), name


def test_a_frontend_that_returns_one_file_refuses_the_monodepth(frontends: Frontends) -> None:
    question = Question(options=VALUES["save_internal_depth"])
    assert frontends.ask("RunPod", question).code == "invalid_option"
    with pytest.raises(ValueError, match="invalid_option: save_internal_depth"):
        modal_app.predict_and_save_ply.local(png(), save_internal_depth=True)


@pytest.mark.parametrize("frontend", ["HTTP", "RunPod", "Modal"])
def test_a_service_refuses_levels_of_detail(frontend: str, frontends: Frontends) -> None:
    answer = frontends.ask(frontend, Question(options=VALUES["lod"]))
    assert answer.code == "invalid_option"
    assert "lod is given, but the answer is one file: leave it out" in answer.message


@pytest.mark.parametrize("frontend", ["RunPod", "Modal"])
@pytest.mark.parametrize(("alias", "name"), inputs.ALIASES.items())
def test_an_alias_is_the_same_option(frontend: str, alias: str, name: str, frontends: Frontends) -> None:
    assert recorded(frontends, frontend, {alias: VALUES[name][name]}) == PredictOptions(**VALUES[name])


SOURCES = {
    "http": ("file", "image_url", "depth", "depth_url"),
    "runpod": (*IMAGE_NAMES, "image_url", "depth", "depth_url"),
}
"""Fields of an image or a depth map."""


@pytest.mark.parametrize(("frontend", "source"), [(each, name) for each, names in SOURCES.items() for name in names])
def test_an_image_and_a_depth_map_are_read_from_every_field(
    frontend: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, settings = Recorder(), ServiceSettings()
    monkeypatch.setattr(inputs, "fetch_into", lambda url, settings, file: file.write(url.partition("//")[2].encode()))
    values: dict[str, Any] = {source: f"http://{source}" if source.endswith("_url") else source.encode()}
    if source.startswith("depth"):
        values["file" if frontend == "http" else "image"] = b"photo"
    if frontend == "runpod":
        encoded = {
            name: value if isinstance(value, str) else base64.b64encode(value).decode()
            for name, value in values.items()
        }
        assert create_handler(pipeline, settings)({"id": "job", "input": encoded})["code"] == RECORDED
    else:
        files = {name: value for name, value in values.items() if isinstance(value, bytes)}
        texts = {name: value for name, value in values.items() if isinstance(value, str)}
        with serving(lambda: pipeline, settings) as service:
            answer = requests.post(f"{service.url}/predict/ply", files=files or {"": ("", b"")}, data=texts, timeout=60)
        assert answer.json()["code"] == RECORDED, answer.json()
    (request,) = pipeline.requests
    expected = (b"photo", source.encode()) if source.startswith("depth") else (source.encode(), None)
    assert (request.image, request.depth) == expected

"""Every option of a prediction changes something, and every door that offers it passes it on.

The tables must hold exactly what is declared: an option without a row fails.
"""

from __future__ import annotations

import base64
import inspect
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import pytest
import requests
import torch

import predict
from sharp_cog.config.options import OutputOptions, PredictOptions
from sharp_cog.config.settings import ServiceSettings, Settings
from sharp_cog.errors import PredictionError
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.serving import modal_app, openapi
from sharp_cog.serving.inputs import ALIASES
from sharp_cog.serving.runpod import IMAGE_NAMES, create_handler
from tests.contract.stand_in import seen
from tests.contract.test_doors import Doors, Reached, Request, npy, opened, png
from tests.service import serving
from tests.serving.test_fetch import Site, says

pytestmark = pytest.mark.filterwarnings("ignore:.*executing locally and will not have access:UserWarning")

Row = tuple[dict[str, Any], Any]
"""What else is asked for, and a value that is not the default."""

WRITTEN: dict[str, Row] = {
    "output_format": ({}, "splat"),
    "axes": ({}, "opengl"),
    "max_gaussians": ({}, 5),
    "min_opacity": ({}, 0.5),
    "scale": ({}, 2.0),
    "center": ({}, True),
    "spz_version": ({"output_format": "spz"}, 4),
}
"""Of what is written: other bytes."""
PREDICTED: dict[str, Row] = {
    "focal_length_px": ({}, 50.0),
    "focal_length_mm": ({}, 20.0),
    "depth_format": ({}, "inverse-relative"),
    "depth_mode": ({}, "align"),
    "back_surface_factor": ({}, 3.0),
    "depth_fit": ({}, "median"),
    "depth_scale": ({}, 2.0),
    "depth_offset": ({}, 0.5),
}
"""Of the network: other Gaussians."""
KEPT: dict[str, Row] = {"save_internal_depth": ({}, True)}
"""Of what else is given: SHARP's own depth."""
OPTIONS = {**WRITTEN, **PREDICTED, **KEPT}


@pytest.fixture(scope="module")
def sharp() -> SharpPipeline:
    return SharpPipeline(seen, device=torch.device("cpu"), settings=Settings())


@pytest.fixture(scope="module")
def plain(sharp: SharpPipeline) -> Prediction:
    return sharp.predict(sharp.decode(png(), depth_bytes=npy()))


def test_the_tables_hold_every_option() -> None:
    assert OPTIONS.keys() == {option.name for option in fields(PredictOptions)}
    assert WRITTEN.keys() == {option.name for option in fields(OutputOptions)}
    for name, (_, value) in OPTIONS.items():
        assert value != getattr(PredictOptions(), name), f"{name}: the default tests nothing"


@pytest.mark.parametrize("name", WRITTEN)
def test_every_option_of_the_output_changes_the_file(name: str, plain: Prediction, tmp_path: Path) -> None:
    more, value = WRITTEN[name]
    without, with_it = (
        plain.with_output(PredictOptions(**options)).write(tmp_path / "splat").read_bytes()
        for options in (more, {**more, name: value})
    )
    assert without != with_it


@pytest.mark.parametrize("name", PREDICTED)
def test_every_option_of_the_network_changes_the_gaussians(name: str, sharp: SharpPipeline, plain: Prediction) -> None:
    more, value = PREDICTED[name]
    other = sharp(png(), PredictOptions(**{**more, name: value}), depth_bytes=npy())
    assert not torch.allclose(plain.gaussians.means, other.gaussians.means, rtol=1e-3)


def test_internal_depth_is_given_where_it_is_asked_for(sharp: SharpPipeline, plain: Prediction) -> None:
    assert plain.internal_depth_m is None
    asked = sharp(png(), PredictOptions(save_internal_depth=True), depth_bytes=npy())
    assert asked.internal_depth_m is not None
    assert asked.internal_depth_m.shape == (2, 1536, 1536)


REACHED = "prediction_failed"
"""What a door answers once the pipeline has been reached."""
NOT_OFFERED = {
    "cog": {"scale", "center", "spz_version", "save_internal_depth"},
    "http": {"save_internal_depth"},
    "runpod": {"save_internal_depth"},
    "modal": {"save_internal_depth"},
}
"""What a door that gives one file does without; the command line has a table of its own."""


@pytest.fixture(scope="module")
def open_doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Doors, Reached]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHARP_MODEL", "lift")
        yield from opened(Reached, patch, tmp_path_factory.mktemp("doors"))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("door", NOT_OFFERED)
def test_every_door_passes_on_what_it_offers_and_refuses_the_rest(
    door: str, name: str, open_doors: tuple[Doors, Reached]
) -> None:
    doors, pipeline = open_doors
    pipeline.options.clear()
    more, value = OPTIONS[name]
    request = Request(options={**more, name: value})
    if name not in NOT_OFFERED[door]:
        assert doors.ask(door, request) == REACHED
        assert pipeline.options == [PredictOptions(**{**more, name: value})]
    elif door == "cog":
        assert name not in inspect.signature(predict.Predictor.run).parameters
    else:
        assert doors.ask(door, request) == "invalid_option"
        assert pipeline.options == []


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
@pytest.mark.parametrize("door", ["http", "runpod", "modal"])
def test_another_name_of_an_option_is_the_same_option(
    door: str, alias: str, name: str, open_doors: tuple[Doors, Reached]
) -> None:
    doors, pipeline = open_doors
    pipeline.options.clear()
    _, value = OPTIONS[name]
    if (door, alias) == ("http", "format"):  # There the path says it.
        assert doors.ask(door, Request(options={alias: value})) == "invalid_option"
        return
    assert doors.ask(door, Request(options={alias: value})) == REACHED
    assert pipeline.options == [PredictOptions(**{name: value})]


def test_arrays_take_the_internal_depth_which_a_file_has_no_place_for(open_doors: tuple[Doors, Reached]) -> None:
    doors, pipeline = open_doors
    pipeline.options.clear()
    answer = requests.post(
        f"{doors.service.url}/predict", files={"file": png()}, data={"save_internal_depth": "true"}, timeout=60
    )
    assert answer.json()["code"] == REACHED
    with pytest.raises(RuntimeError, match=REACHED):
        modal_app.predict.local(png(), save_internal_depth=True)
    assert pipeline.options == [PredictOptions(save_internal_depth=True)] * 2


def test_what_the_doors_declare_is_what_is_tried_here() -> None:
    offered = OPTIONS.keys() - NOT_OFFERED["cog"]
    assert inspect.signature(predict.Predictor.run).parameters.keys() == {"self", "image", "depth", *offered}
    schema = openapi.form()["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert schema["properties"].keys() == {*SOURCES["http"], "f_px", *OPTIONS}


SOURCES = {
    "http": ("file", "image_url", "depth", "depth_url"),
    "runpod": (*IMAGE_NAMES, "image_url", "depth", "depth_url"),
}
"""Of pictures and depth maps."""


class Given(Reached):
    """Keeps the bytes that it is called with."""

    def decode(
        self, image_bytes: bytes, options: PredictOptions | None = None, *, depth_bytes: bytes | None = None
    ) -> NoReturn:
        self.given = (image_bytes, depth_bytes)
        raise PredictionError("reached")


@pytest.mark.parametrize(("door", "source"), [(door, name) for door, names in SOURCES.items() for name in names])
def test_every_source_is_read(door: str, source: str) -> None:
    """A picture or a map by each of its names, and by its address."""
    site, pipeline = Site(), Given()
    settings = ServiceSettings(fetch_private=True)
    content = source.encode()
    value: Any = site.url("/a", says(content)) if source.endswith("_url") else content
    image: dict[str, Any] = {} if not source.startswith("depth") else {"file" if door == "http" else "image": b"photo"}
    asked = {**image, source: value}
    if door == "runpod":
        encoded = {
            name: each if isinstance(each, str) else base64.b64encode(each).decode() for name, each in asked.items()
        }
        assert create_handler(pipeline, settings)({"id": "job", "input": encoded})["code"] == REACHED
    else:
        texts = {name: each for name, each in asked.items() if isinstance(each, str)}
        files = {name: each for name, each in asked.items() if name not in texts}
        with serving(lambda: pipeline, settings) as service:
            answer = requests.post(f"{service.url}/predict/ply", files=files or {"": ("", b"")}, data=texts, timeout=60)
        assert answer.json()["code"] == REACHED, answer.json()
    assert pipeline.given == ((b"photo", content) if image else (content, None))
    site.server.shutdown()
    site.server.server_close()

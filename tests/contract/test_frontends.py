"""One table of requests through every frontend: the same bytes, the same errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sharp_cog.config.parameters import FRONTENDS
from sharp_cog.formats import FORMATS
from tests.frontends import Frontends, Question, opened
from tests.images import npy, png
from tests.lift import small_lift

pytestmark = pytest.mark.filterwarnings("ignore:.*executing locally and will not have access:UserWarning")

SPLATS: list[dict[str, Any]] = [
    {},
    {"output_format": "spz", "focal_length_px": 80.0},
    {"output_format": "splat", "focal_length_mm": 50.0, "max_gaussians": 400},
    {"output_format": "sog", "axes": "opengl", "min_opacity": 0.4},
    {"output_format": "glb", "depth_mode": "fixed", "back_surface_factor": 1.5, "depth_scale": 2.0},
    {"output_format": "compressed_ply", "depth_offset": -0.25},
    {"output_format": "apple_ply", "depth_format": "relative"},
]
BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"focal_length_px": 900.0, "focal_length_mm": 28.0}, "are both given"),
    ({"focal_length_mm": 28.0, "fov": 60.0}, "are both given"),
    ({"fov": 180.0}, "give a number from 1 to 170"),
    ({"output_format": "glb", "axes": "opencv"}, "glb always has opengl"),
    ({"output_format": "html", "axes": "opengl"}, "html always has opencv"),
    ({"depth_mode": "align", "back_surface_factor": 2.0}, "which has SHARP's own back surface"),
    ({"min_opacity": 1.5}, "give a number from 0 to 1"),
    ({"back_surface_factor": 0.5}, "give a number from 1 to 100"),
    ({"depth_scale": 0.0}, "give a number from 0.001"),
]
REFUSED = [
    (Question(image=b"no image at all", options={}), "invalid_image", "not a"),
    (Question(image=png()[:200], options={}), "invalid_image", ""),
    (Question(depth=b"no depth map", options={}), "invalid_depth", ""),
    (Question(depth=npy(64, 96), options={}), "invalid_depth", "aspects differ"),
    (Question(depth=None, options={}), "invalid_depth", "needs a depth map"),
    *((Question(options=options), "invalid_option", message) for options, message in BAD_OPTIONS),
]


@pytest.fixture(scope="module")
def frontends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Frontends]:
    with opened(small_lift(), tmp_path_factory.mktemp("frontends")) as found:
        yield found


@pytest.mark.parametrize("options", SPLATS, ids=str)
def test_every_frontend_returns_the_same_bytes(options: dict[str, Any], frontends: Frontends) -> None:
    expected = frontends.ask("Python", Question(options=options)).content
    assert len(expected) > 1000
    for frontend in FRONTENDS:
        assert frontends.ask(frontend, Question(options=options)).content == expected, frontend


def test_the_table_has_every_format_that_a_frontend_returns() -> None:
    asked = {options.get("output_format", "ply") for options in SPLATS}
    assert FORMATS.keys() - asked == {"html", "mp4", "usdz"}, (
        "the tools of these may be missing: they have their own tests"
    )


@pytest.mark.parametrize(("question", "code", "message"), REFUSED, ids=lambda value: str(value)[-60:])
def test_every_frontend_returns_the_same_error(
    question: Question, code: str, message: str, frontends: Frontends
) -> None:
    for frontend in FRONTENDS:
        answer = frontends.ask(frontend, question)
        assert answer.code == code, frontend
        assert message in answer.message, frontend

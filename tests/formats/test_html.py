"""The page, as text: what is in it and what it asks for. How it looks: tests/e2e/test_page.py, in a real browser."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sharp_cog.errors import NotInstalledError
from sharp_cog.formats.html import write_html
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from tests import decoders
from tests.splats import CAMERA, random_gaussians

PAGE = """<!doctype html>
<html><head>
        <title>SuperSplat Viewer</title>
        <link rel="stylesheet" href="./index.css" />
        <script type="application/json" id="sse-bootstrap">
            null
        </script>
        <script type="module">
            import { createViewer } from './index.js';
            await createViewer({});
        </script>
</head><body></body></html>
"""


@pytest.fixture
def viewer(tmp_path: Path) -> Path:
    """A page with the seams of the real one, which needs npm."""
    (tmp_path / "index.html").write_text(PAGE)
    (tmp_path / "index.css").write_text("body { color: red }")
    (tmp_path / "index.js").write_text("export const createViewer = 1;\n//# sourceMappingURL=index.js.map\n")
    return tmp_path


class Collector(HTMLParser):
    """Scripts and styles by their tags, and every address that a tag asks for."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.addresses: list[str] = []
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._open = given.get("id") or given.get("type") or tag
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_data(self, data: str) -> None:
        self.texts[self._open] = self.texts.get(self._open, "") + data

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


def page_of(gaussians: Gaussians, viewer: Path, camera: Camera = CAMERA) -> Collector:
    file = io.BytesIO()
    write_html(file, gaussians, camera, viewer_dir=viewer)
    return Collector(file.getvalue().decode())


def bootstrap_of(page: Collector) -> dict[str, Any]:
    bootstrap: dict[str, Any] = json.loads(page.texts["sse-bootstrap"])
    return bootstrap


def test_the_page_holds_everything_and_asks_for_nothing(viewer: Path) -> None:
    page = page_of(random_gaussians(40), viewer)
    assert page.addresses == []
    assert page.texts["title"] == "A photograph in 3D"
    assert "color: red" in page.texts["style"]
    (program,) = re.findall(r"from 'data:text/javascript;base64,([^']+)'", page.texts["module"])
    assert base64.b64decode(program).decode() == "export const createViewer = 1;", "without the name of its map"


@pytest.mark.parametrize("num", [0, 1, 257])
def test_the_splat_inside_is_the_splat(viewer: Path, num: int) -> None:
    gaussians = random_gaussians(num)
    bootstrap = bootstrap_of(page_of(gaussians, viewer))
    assert bootstrap["contentFilename"] == "scene.sog"
    kind, _, content = bootstrap["contentUrl"].partition(";base64,")
    assert kind == "data:application/octet-stream"
    decoded = decoders.sog(base64.b64decode(content))
    assert len(decoded.means) == num
    np.testing.assert_allclose(decoded.means, gaussians.means, atol=1e-3)


def test_it_starts_at_the_photographs_camera(viewer: Path) -> None:
    gaussians = random_gaussians(999)
    gaussians.means[:, 2] = gaussians.means[:, 2].abs() + 1.0
    settings = bootstrap_of(page_of(gaussians, viewer))["settings"]
    (camera,) = settings["cameras"]
    fov = math.degrees(2 * math.atan(400 / 1150.25))
    assert camera["initial"]["position"] == [0, 0, 0]
    assert camera["initial"]["target"] == pytest.approx([0, 0, np.median(gaussians.means[:, 2])])
    assert camera["initial"]["fov"] == pytest.approx(fov)
    assert settings["startMode"] == "animTrack"


def test_the_sway_is_small_closed_and_begins_at_the_photograph(viewer: Path) -> None:
    gaussians = random_gaussians(999)
    gaussians.means[:, 2] = gaussians.means[:, 2].abs() + 1.0
    (track,) = bootstrap_of(page_of(gaussians, viewer))["settings"]["animTracks"]
    keys = track["keyframes"]
    positions = np.array(keys["values"]["position"]).reshape(-1, 3)
    assert len(keys["times"]) == len(positions) == len(keys["values"]["fov"])
    assert keys["times"][-1] < track["duration"]
    assert track["loopMode"] == "repeat"
    np.testing.assert_allclose(positions[0], 0, atol=1e-9)
    assert positions[:, 2].max() == 0
    # The nearest things move by 3 % of the picture's diagonal.
    near_m = np.quantile(gaussians.means[:, 2], 0.05)
    moved_px = np.abs(positions[:, 0]).max() * 1150.25 / near_m
    assert moved_px == pytest.approx(0.03 * math.hypot(1200, 800), rel=1e-3)


def test_a_hand_is_kept_to_what_the_photograph_shows(viewer: Path) -> None:
    page = page_of(random_gaussians(10), viewer)
    (bounds,) = re.findall(r"const \{ tanX, tanY, side, ahead \} = (\{.*?\});", page.texts["module"])
    values = json.loads(bounds)
    assert values["tanX"] == pytest.approx(600 / 1150.25)
    assert values["tanY"] == pytest.approx(400 / 1150.25)
    assert values["side"] > 0
    assert values["ahead"] > 0


def test_a_missing_viewer_is_told_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(NotInstalledError, match=r"scripts/viewer, or set SHARP_VIEWER_DIR"):
        write_html(io.BytesIO(), random_gaussians(1), CAMERA, viewer_dir=tmp_path / "none")


@pytest.mark.parametrize("seam", ["<title>", "sse-bootstrap", "index.css", "import {"])
def test_another_version_of_the_viewer_is_told(viewer: Path, seam: str) -> None:
    (viewer / "index.html").write_text(PAGE.replace(seam, seam.upper()))
    with pytest.raises(NotInstalledError, match="another version of the viewer"):
        write_html(io.BytesIO(), random_gaussians(1), CAMERA, viewer_dir=viewer)

"""The text of a page and the addresses in it; tests/e2e/test_page.py opens one in a real browser."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from sharp_cog.errors import NotInstalledError
from sharp_cog.formats.html import write_html
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from tests import decoders
from tests.formats.cases import PAGE, ParsedPage
from tests.splats import CAMERA, random_gaussians


@pytest.fixture
def viewer(tmp_path: Path) -> Path:
    """Return a folder with a viewer as small as possible; the real one needs npm."""
    (tmp_path / "index.html").write_text(PAGE)
    (tmp_path / "index.css").write_text("body { color: red }")
    (tmp_path / "index.js").write_text("export const createViewer = 1;\n//# sourceMappingURL=index.js.map\n")
    return tmp_path


def page_of(gaussians: Gaussians, viewer: Path, camera: Camera = CAMERA) -> ParsedPage:
    file = io.BytesIO()
    write_html(file, gaussians, camera, viewer_dir=viewer)
    return ParsedPage(file.getvalue().decode())


def test_the_page_contains_everything_and_requests_nothing(viewer: Path) -> None:
    page = page_of(random_gaussians(40), viewer)
    assert page.addresses == []
    assert page.texts["title"] == "A photograph in 3D"
    assert "color: red" in page.texts["style"]
    (program,) = re.findall(r"from 'data:text/javascript;base64,([^']+)'", page.texts["module"])
    assert base64.b64decode(program).decode() == "export const createViewer = 1;", "without the name of its map"


@pytest.mark.parametrize("num", [0, 1, 257])
def test_the_page_contains_the_splat(viewer: Path, num: int) -> None:
    gaussians = random_gaussians(num)
    bootstrap = page_of(gaussians, viewer).bootstrap
    assert bootstrap["contentFilename"] == "scene.sog"
    kind, _, content = bootstrap["contentUrl"].partition(";base64,")
    assert kind == "data:application/octet-stream"
    decoded = decoders.sog(base64.b64decode(content))
    assert len(decoded.means) == num
    np.testing.assert_allclose(decoded.means, gaussians.means, atol=1e-3)


def test_the_page_starts_at_the_photographs_camera(viewer: Path) -> None:
    gaussians = random_gaussians(999)
    gaussians.means[:, 2] = gaussians.means[:, 2].abs() + 1.0
    settings = page_of(gaussians, viewer).bootstrap["settings"]
    (camera,) = settings["cameras"]
    fov = math.degrees(2 * math.atan(400 / 1150.25))
    assert camera["initial"]["position"] == [0, 0, 0]
    assert camera["initial"]["target"] == pytest.approx([0, 0, np.median(gaussians.means[:, 2])])
    assert camera["initial"]["fov"] == pytest.approx(fov)
    assert settings["startMode"] == "animTrack"


def test_the_sway_is_small_closed_and_starts_at_the_photograph(viewer: Path) -> None:
    gaussians = random_gaussians(999)
    gaussians.means[:, 2] = gaussians.means[:, 2].abs() + 1.0
    (track,) = page_of(gaussians, viewer).bootstrap["settings"]["animTracks"]
    keys = track["keyframes"]
    positions = np.array(keys["values"]["position"]).reshape(-1, 3)
    assert len(keys["times"]) == len(positions) == len(keys["values"]["fov"])
    assert keys["times"][-1] < track["duration"]
    assert track["loopMode"] == "repeat"
    np.testing.assert_allclose(positions[0], 0, atol=1e-9)
    assert positions[:, 2].max() == 0
    # The nearest things move by 3 % of the image's diagonal.
    near_m = np.quantile(gaussians.means[:, 2], 0.05)
    moved_px = np.abs(positions[:, 0]).max() * 1150.25 / near_m
    assert moved_px == pytest.approx(0.03 * math.hypot(1200, 800), rel=1e-3)


def test_users_can_move_the_camera_within_the_photographs_field_of_view(viewer: Path) -> None:
    page = page_of(random_gaussians(10), viewer)
    (bounds,) = re.findall(r"const \{ tanX, tanY, side, ahead \} = (\{.*?\});", page.texts["module"])
    values = json.loads(bounds)
    assert values["tanX"] == pytest.approx(600 / 1150.25)
    assert values["tanY"] == pytest.approx(400 / 1150.25)
    assert values["side"] > 0
    assert values["ahead"] > 0


def test_a_missing_viewer_is_reported_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(NotInstalledError, match=r"scripts/viewer, or set SHARP_VIEWER_DIR"):
        write_html(io.BytesIO(), random_gaussians(1), CAMERA, viewer_dir=tmp_path / "none")


@pytest.mark.parametrize("part", ["<title>", "sse-bootstrap", "index.css", "import {"])
def test_another_version_of_the_viewer_is_reported(viewer: Path, part: str) -> None:
    (viewer / "index.html").write_text(PAGE.replace(part, part.upper()))
    with pytest.raises(NotInstalledError, match="another version of the viewer"):
        write_html(io.BytesIO(), random_gaussians(1), CAMERA, viewer_dir=viewer)

"""Our files in the viewers of others, in a real Chromium with software WebGL: `scripts/test -m browser tests/interop`.

Each viewer shows a scene of coloured patches from the photograph's camera. Places, sizes and colours must be those of
our own renderer. The viewers come from npm: `npm install --prefix tests/interop`. antimatter15's page is no package;
its test runs where https://github.com/antimatter15/splat is cloned into tests/interop/antimatter15.
"""

from __future__ import annotations

import functools
import io
import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from sharp_cog import formats
from sharp_cog.config.options import OutputOptions
from sharp_cog.preview import movie
from tests.interop.scene import CAMERA, PATCHES, Picture, Seen, scene, seen

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

HERE = Path(__file__).parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    *("--no-sandbox", "--disable-background-networking"),
]
SECONDS_TO_SHOW = 120


@dataclass(frozen=True, kw_only=True)
class Case:
    """A file in a viewer.

    Attributes:
        page: Page in tests/interop/pages.
        format_: Format of the file.
        arguments: What the page is told about the axes.
        file: Name of the file, if its suffix does not select the format.
    """

    page: str
    format_: str
    arguments: tuple[str, ...] = ()
    file: str = ""

    def __str__(self) -> str:
        return f"{self.page}-{self.file or self.format_}"


CASES = [
    *(Case(page="spark", format_=name, arguments=("isTurned",)) for name in ("ply", "compressed_ply", "splat", "sog")),
    *(Case(page="gaussian-splats-3d", format_=name) for name in ("ply", "splat")),
    *(Case(page="babylon", format_=name, arguments=("isAhead",)) for name in ("ply", "compressed_ply", "splat")),
    # Babylon.js mirrors z, so that a camera of glTF still looks along -z.
    Case(page="babylon", format_="glb"),
    *(Case(page="supersplat", format_=name) for name in ("ply", "compressed_ply", "sog")),
    Case(page="supersplat", format_="sog", file="lod-meta.json"),
]


class Handler(SimpleHTTPRequestHandler):
    """Serves files with the types that modules of JavaScript need."""

    extensions_map = {**SimpleHTTPRequestHandler.extensions_map, ".js": "text/javascript"}  # noqa: RUF012

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with the viewers, their pages and our files, and its address."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("node_modules", "pages", "antimatter15"):
        if (HERE / name).exists():
            (folder / name).symlink_to(HERE / name)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: on Debian and Ubuntu, sudo apt install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def expected() -> dict[str, Seen]:
    found = seen(movie.still(scene(), CAMERA, width=CAMERA.width))
    assert set(found) == {patch.name for patch in PATCHES}
    return found


def picture_of(page: Page) -> Picture:
    return np.asarray(Image.open(io.BytesIO(page.screenshot(timeout=60_000))).convert("RGB"))


def opened(browser: Browser) -> Page:
    return browser.new_page(viewport={"width": CAMERA.width, "height": CAMERA.height})


def assert_like_ours(picture: Picture, expected: dict[str, Seen]) -> None:
    """Measured: middles within 0.5 pixels, sides within 4 % (ours have wider edges), colours within 3 of 255."""
    found = seen(picture)
    assert set(found) == set(expected)
    for name, ours in expected.items():
        theirs = found[name]
        np.testing.assert_allclose(theirs.middle, ours.middle, atol=3, err_msg=name)
        assert theirs.side == pytest.approx(ours.side, rel=0.08), name
        np.testing.assert_allclose(theirs.srgb, ours.srgb, atol=8, err_msg=name)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_viewer_shows_the_scene_as_we_do(
    case: Case, browser: Browser, site: tuple[Path, str], expected: dict[str, Seen]
) -> None:
    if not (HERE / "node_modules").exists():
        pytest.skip("the viewers are not installed: run npm install --prefix tests/interop")
    folder, address = site
    file = folder / (case.file or f"scene{formats.FORMATS[case.format_].suffix}")
    formats.write(file, scene(), CAMERA, OutputOptions(output_format=case.format_))
    page = opened(browser)
    arguments = {
        "url": f"{address}/{file.name}",
        "width": CAMERA.width,
        "height": CAMERA.height,
        "fov": CAMERA.vertical_fov_degrees,
        **dict.fromkeys(case.arguments, True),
    }
    page.goto(f"{address}/pages/{case.page}.html#{quote(json.dumps(arguments))}")
    start = time.monotonic()
    while not page.title():
        assert time.monotonic() - start < SECONDS_TO_SHOW, "the splat does not show"
        page.wait_for_timeout(200)
    assert page.title() == "shown"
    picture = picture_of(page)
    page.close()
    assert_like_ours(picture, expected)


def test_antimatter15s_page_shows_the_scene_as_we_do(
    browser: Browser, site: tuple[Path, str], expected: dict[str, Seen]
) -> None:
    if not (HERE / "antimatter15").exists():
        pytest.skip("clone https://github.com/antimatter15/splat into tests/interop/antimatter15")
    folder, address = site
    formats.write(folder / "scene.splat", scene(), CAMERA, OutputOptions(output_format="splat"))
    page = opened(browser)
    view = quote(json.dumps(np.eye(4).ravel().tolist()))
    page.goto(f"{address}/antimatter15/index.html?url={quote(address)}/scene.splat#{view}")
    page.add_style_tag(content="#info, #spinner, #progress, #message, #caminfo, #quality { display: none !important }")
    page.wait_for_timeout(2000)
    # The page has cameras of a data set of its own; its carousel would move the camera.
    page.evaluate(f"camera.fx = camera.fy = {CAMERA.focal_length_px}; dispatchEvent(new Event('resize'))")
    page.wait_for_timeout(3000)
    picture = picture_of(page)
    page.close()
    assert_like_ours(picture, expected)

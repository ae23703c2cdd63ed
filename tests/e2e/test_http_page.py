"""The service's page in a real Chromium, as a person uses it: `scripts/test -m browser`.

It needs Chromium (Debian and Ubuntu: apt install chromium) and the viewer (scripts/viewer).
"""

from __future__ import annotations

import io
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page

from sharp_cog import Settings, SharpPipeline
from tests.e2e.test_page import ROOT, Picture, browser, photograph, psnr
from tests.service import Service, serving

__all__ = ["browser"]  # A fixture of this module, too.

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]

ROOM, DEPTH = ROOT / "examples" / "room.jpg", ROOT / "examples" / "room.depth.png"


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    subprocess.run([ROOT / "scripts" / "viewer"], check=True, timeout=300)
    lift = SharpPipeline.load(Settings(model="lift", device="cpu"))
    with serving(lambda: lift) as found:
        yield found


def opened(browser: Browser, service: Service, *, width: int = 900, height: int = 700) -> Page:
    page = browser.new_page(viewport={"width": width, "height": height})
    page.goto(service.url)
    page.wait_for_selector("text=needs a depth map")
    return page


def make(page: Page) -> None:
    """Choose the example and its depth map, and wait for the splat."""
    page.set_input_files("#file", ROOM)
    page.set_input_files("#depth", DEPTH)
    page.click("#go")
    page.wait_for_selector("#result:not([hidden])", timeout=60_000)


def shown(page: Page) -> Picture:
    """Return the viewer's image, once it shows something, without its own controls."""
    frame = page.locator("#viewer").element_handle().content_frame()
    assert frame is not None
    frame.wait_for_load_state()
    frame.add_style_tag(content=".sse-ui { opacity: 0 }")
    start = time.monotonic()
    while True:
        taken = page.locator("#viewer").screenshot(timeout=60_000)
        picture = np.asarray(Image.open(io.BytesIO(taken)).convert("RGB").resize((768, 512)), dtype=np.float64)
        if picture.std() > 20:
            return picture
        assert time.monotonic() - start < 90, "the splat does not show"


@pytest.fixture(scope="module")
def page(browser: Browser, service: Service) -> Iterator[Page]:
    found = opened(browser, service)
    make(found)
    yield found
    found.close()


def test_a_chosen_photograph_is_shown_as_a_splat(page: Page) -> None:
    seen, expected = shown(page), photograph()
    right, wrong = psnr(seen, expected), max(psnr(seen[:, ::-1], expected), psnr(seen[::-1], expected))
    print(f"{right:.1f} dB, mirrored or upside down at most {wrong:.1f} dB")
    assert right > 20
    assert right > wrong + 5
    assert "Done after" in page.inner_text("#status")


@pytest.mark.parametrize(("name", "suffix", "magic"), [("ply", ".ply", b"ply"), ("spz", ".spz", b"\x1f\x8b")])
def test_each_format_is_downloaded_without_another_prediction(
    page: Page, service: Service, name: str, suffix: str, magic: bytes, tmp_path: Path
) -> None:
    with page.expect_download(timeout=60_000) as download:
        page.click(f"[data-format={name}]")
    assert download.value.suggested_filename == f"room{suffix}"
    download.value.save_as(tmp_path / "splat")
    assert (tmp_path / "splat").read_bytes().startswith(magic)
    metrics = page.request.get(f"{service.url}/metrics").text()
    assert 'sharp_stage_seconds_count{stage="network"} 1.0' in metrics


def test_every_format_is_offered(page: Page) -> None:
    offered = page.locator("#downloads button").evaluate_all("(all) => all.map((one) => one.dataset.format)")
    assert offered == ["ply", "apple_ply", "compressed_ply", "splat", "spz", "sog", "glb", "usdz", "html", "mp4"]


def test_a_text_file_is_refused_with_a_message(browser: Browser, service: Service) -> None:
    page = opened(browser, service)
    page.set_input_files("#file", ROOT / "README.md")
    page.click("#go")
    page.wait_for_selector("#status.error")
    assert page.inner_text("#status").startswith("the bytes are not an image")
    assert page.locator("#result").is_hidden()
    assert page.locator("#go").is_enabled(), "another try is possible"
    page.set_input_files("#file", ROOM)
    assert page.inner_text("#status") == ""
    page.close()


def test_a_photograph_can_be_dropped(browser: Browser, service: Service) -> None:
    page = opened(browser, service)
    page.evaluate(
        """async (bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "dropped.jpg", { type: "image/jpeg" }));
            const event = (type) => new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true });
            for (const type of ["dragover", "drop"]) document.getElementById("drop").dispatchEvent(event(type));
        }""",
        list(ROOM.read_bytes()),
    )
    assert page.inner_text("#chosen") == "dropped.jpg"
    assert page.locator("#go").is_enabled()
    page.wait_for_selector("#photo:not([hidden])")
    page.close()


def test_the_page_fits_a_phone(browser: Browser, service: Service) -> None:
    page = opened(browser, service, width=360, height=740)
    make(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for selector in ("#drop", "#go", "#viewer", "#downloads"):
        box = page.locator(selector).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
    for button in page.locator("#downloads button").all():
        box = button.bounding_box()
        assert box is not None
        assert box["height"] >= 40, "a finger must hit it"
    page.close()


def test_the_page_asks_no_other_host(browser: Browser, service: Service) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(service.url)
    page.wait_for_selector("text=needs a depth map")
    assert asked
    assert all(url.startswith((service.url, "data:")) for url in asked)
    page.close()


def test_without_a_viewer_the_splat_is_downloaded(browser: Browser, tmp_path: Path) -> None:
    lift = SharpPipeline.load(Settings(model="lift", device="cpu", viewer_dir=tmp_path))
    with serving(lambda: lift) as bare:
        page = opened(browser, bare)
        with page.expect_download(timeout=60_000) as download:
            make(page)
        assert download.value.suggested_filename == "room.ply"
        assert page.locator("#viewer").is_hidden()
        assert page.locator("#noviewer").is_visible()
        page.close()

"""Pages in a real Chromium: the service's own with a key, and one of another site, with and without CORS.

It needs Chromium (Debian and Ubuntu: apt install chromium).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from sharp_cog import Settings
from sharp_cog.config.services import ServiceSettings
from tests.e2e.test_page import browser
from tests.gated import Gated
from tests.service import Service, serving
from tests.website import Site, says

__all__ = ["browser"]  # A fixture of this module, too.

pytestmark = [pytest.mark.browser, pytest.mark.timeout(200)]

ASK = """async ([address, key]) => {
    const body = new FormData();
    body.append("file", new File([new Uint8Array([1, 2, 3])], "beach.jpg"));
    try {
        const headers = key ? { "Authorization": `Bearer ${key}`, "X-Request-Id": "page-1" } : {};
        const answer = await fetch(`${address}/predict/splat`, { method: "POST", body, headers });
        const size = (await answer.arrayBuffer()).byteLength;
        return { status: answer.status, size, name: answer.headers.get("Content-Disposition") };
    } catch (error) {
        return { error: error.name };
    }
}"""
"""Request of a page: its answer as the page may see it, or the error if it may not."""


@pytest.fixture
def pipeline(tmp_path: Path) -> Gated:
    """A pipeline without a viewer for html pages, which takes any bytes for an image."""
    found = Gated()
    found.settings = Settings(model="lift", viewer_dir=tmp_path)
    return found


@pytest.fixture
def other_site(browser: Browser, site: Site) -> Iterator[Page]:
    """A page of another origin."""
    page = browser.new_page()
    page.goto(site.url("/", says(b"<!doctype html><title>Another site</title>", Content_Type="text/html")))
    yield page
    page.close()


def ask(page: Page, service: Service, key: str = "") -> Any:
    return page.evaluate(ASK, [service.url, key])


def test_a_page_of_an_allowed_origin_uses_the_service(other_site: Page, site: Site, pipeline: Gated) -> None:
    settings = ServiceSettings(api_keys=("sesame",), allowed_origins=(f"http://127.0.0.1:{site.port}",))
    with serving(lambda: pipeline, settings) as service:
        told = ask(other_site, service, "sesame")
        assert told == {"status": 200, "size": 3 * 32, "name": 'attachment; filename="beach.splat"'}
        assert ask(other_site, service, "wrong")["status"] == 401, "the page can read why"
        assert ask(other_site, service)["status"] == 401


def test_a_page_of_any_other_origin_cannot_even_start_a_prediction(other_site: Page, pipeline: Gated) -> None:
    for settings in (ServiceSettings(), ServiceSettings(allowed_origins=("https://app.example.com",))):
        with serving(lambda: pipeline, settings) as service:
            # Without headers of its own the request needs no preflight: browsers send it, and hide the answer.
            assert ask(other_site, service) == {"error": "TypeError"}
            assert ask(other_site, service, "sesame") == {"error": "TypeError"}
    assert pipeline.predicted == []


def test_the_page_asks_for_the_key_and_keeps_it_until_its_tab_is_closed(
    browser: Browser, pipeline: Gated, tmp_path: Path
) -> None:
    (tmp_path / "beach.jpg").write_bytes(b"picture")
    with serving(lambda: pipeline, ServiceSettings(api_keys=("sesame",))) as service:
        page = browser.new_page()
        page.goto(service.url)
        page.wait_for_selector("#locked:not([hidden])")
        page.set_input_files("#file", tmp_path / "beach.jpg")
        page.fill("#key", "wrong")
        page.click("#go")
        page.wait_for_selector("text=does not accept this key")
        page.fill("#key", "sesame")
        with page.expect_download() as download:
            page.click("#go")
        assert download.value.suggested_filename == "beach.ply"
        assert page.locator("#locked").is_hidden()
        with page.expect_download() as download:
            page.click("[data-format=spz]")
        assert download.value.suggested_filename == "beach.spz"
        page.reload()
        page.wait_for_function("about.needs_key")
        assert page.locator("#locked").is_hidden()
        assert page.input_value("#key") == "sesame"
        fresh = browser.new_page()
        fresh.goto(service.url)
        fresh.wait_for_selector("#locked:not([hidden])")
        assert fresh.input_value("#key") == "", "another tab must ask again"
        fresh.close()
        page.close()

"""No secret, token or signed URL appears in a log, an error or a file, whatever goes wrong at whichever frontend.

Every secret below contains MARK. Each test lets a frontend succeed or fail, and searches all of its output.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import requests

from sharp_cog.cli import main
from sharp_cog.config.dataset import DatasetSettings
from sharp_cog.config.services import ServiceSettings
from sharp_cog.config.settings import Settings
from sharp_cog.dataset.hub import HubError
from sharp_cog.errors import SettingError
from sharp_cog.files.retry import RetryPolicy
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.serving import refusals, runpod
from sharp_cog.text import trace
from tests.dataset.client import run_of
from tests.dataset.gsplat_server import GsplatServer, RefusalError
from tests.dataset.hub_server import Answer as StubAnswer
from tests.dataset.hub_server import HubServer, RefusedError, Request
from tests.dataset.unsplash_server import ACCESS_KEY, UnsplashServer, send_json
from tests.gated import Gated
from tests.service import serving
from tests.website import Answer, Site, says

MARK = "xyzzy"
SIGNED = f"?X-Amz-Credential=AKIA{MARK}&X-Amz-Signature={MARK}"
SECRETS = {
    "HF_TOKEN": f"hf_{MARK}abcdefgh",
    "RUNPOD_API_KEY": f"rpa_{MARK}",
    "RUNPOD_AI_API_KEY": f"rpa_{MARK}",
}


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def check_output(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Return a check that all output so far, and what a test adds, is not empty and does not contain MARK.

    Our own loggers log everything, and those of libraries their warnings, as Python does by default.
    """
    monkeypatch.setattr(
        logging.getLogger("sharp_cog"), "handlers", []
    )  # A command left one, on a stream that is closed.
    caplog.set_level(logging.WARNING)
    caplog.set_level(logging.DEBUG, logger="sharp_cog")
    formatter = logging.Formatter("%(name)s: %(message)s")

    def check(*more: object) -> str:
        captured = capfd.readouterr()
        lines = [*map(formatter.format, caplog.records), captured.out, captured.err, *map(str, more)]
        text = "\n".join(lines)
        assert text.strip(), "there is no output at all"
        shown = [line for line in text.splitlines() if MARK in line or ACCESS_KEY in line]
        assert not shown, shown
        return text

    return check


def status(code: int) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_error(code)

    return answer


def breaks(request: BaseHTTPRequestHandler) -> None:
    """Send a file that ends in the middle."""
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b"begun")


def leads_to(location: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", location)
        request.end_headers()

    return answer


ANSWERS: dict[str, Answer] = {
    "/good.jpg": says(b"12345"),
    "/missing.jpg": status(404),
    "/refused.jpg": status(403),
    "/failing.jpg": status(503),
    "/broken.jpg": breaks,
    "/elsewhere.jpg": leads_to(f"http://u:{MARK}@127.0.0.1:9/{SIGNED}"),
    "/nowhere.jpg": leads_to(f"http://{MARK}.invalid:xx/{SIGNED}"),
}


def signed_urls(site: Site) -> list[str]:
    """Return signed URLs of every kind: some work, some fail, some are malformed."""
    served = [site.url(f"{path}{SIGNED}", answer) for path, answer in ANSWERS.items()]
    host = f"127.0.0.1:{site.port}"
    strange = [f"http://u:{MARK}@{host}/a.jpg", f"ftp://u:{MARK}@{host}/{SIGNED}", f"http://127.0.0.1:9/a{SIGNED}"]
    return [*served, *strange, f"http://[{host}/{SIGNED}", f"http://{host}:xx/{SIGNED}", "http://"]


@pytest.mark.parametrize("command", [["download", "-v"], ["predict", "-v", "room.jpg"]])
@pytest.mark.parametrize("answer", [status(403), status(404), breaks, says(b"not the checkpoint"), None])
def test_a_checkpoint_that_cannot_be_downloaded(
    check_output: Callable[..., str],
    site: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    answer: Answer | None,
) -> None:
    url = f"http://127.0.0.1:9/a.pt{SIGNED}" if answer is None else site.url(f"/a.pt{SIGNED}", answer)
    monkeypatch.setattr("sharp_cog.files.retry.RetryPolicy._wait_s", lambda policy, num_failures: 0.001)
    monkeypatch.setenv("SHARP_CHECKPOINT_URL", url.replace("http://", f"http://user:{MARK}@"))
    monkeypatch.setenv("SHARP_CACHE_DIR", str(tmp_path))
    monkeypatch.chdir(Path(__file__).parents[2] / "examples")
    assert main(command) == 1
    assert "127.0.0.1" in check_output()


@pytest.mark.parametrize("url", [f"ftp://u:{MARK}@e.com/{SIGNED}", f"https://[e.com/{SIGNED}", f"//u:{MARK}@e.com"])
def test_settings_with_malformed_urls(check_output: Callable[..., str], url: str) -> None:
    bucket: dict[str, Any] = dict.fromkeys(("bucket_access_key_id", "bucket_secret_access_key", "bucket_name"), "a")
    makers: list[Callable[[], object]] = [
        lambda: Settings(checkpoint_url=url),
        lambda: ServiceSettings(bucket_endpoint_url=url, **bucket),
        lambda: DatasetSettings(source="list", unsplash_access_key="a", unsplash_api_url=url),
        lambda: DatasetSettings(input_dir="a", gsplat_base=url),
    ]
    for make in makers:
        with pytest.raises(SettingError, match="address") as caught:
            make()
        check_output(caught.value)


def test_settings_that_are_printed(check_output: Callable[..., str]) -> None:
    check_output(
        Settings(checkpoint_url=f"https://u:{MARK}@e.com/a.pt{SIGNED}"),
        DatasetSettings(source="list", unsplash_access_key=MARK),
        ServiceSettings(
            runpod_webhook=f"https://e.com/{MARK}",
            bucket_endpoint_url=f"https://{MARK}@e.com",
            bucket_access_key_id=MARK,
            bucket_secret_access_key=MARK,
            bucket_name="a",
            api_keys=(MARK,),
        ),
    )


def test_keys_of_the_http_service(
    check_output: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys").write_text(f"{MARK} {MARK}\n")
    for line in (["--api-key", MARK], ["--api-key-file", "keys"], [f"--api-key={MARK}"]):
        assert main(["serve", "--port", "0", *line]) == 1
    seen = []
    with serving(Gated, ServiceSettings(api_keys=(MARK,), rate_limit="2/hour")) as service:
        for headers in ({"X-API-Key": MARK}, {"X-API-Key": f"{MARK}2"}, {"Authorization": f"Bearer {MARK}3"}) * 2:
            answer = requests.post(f"{service.url}/predict", files={"file": b"1"}, headers=headers, timeout=60)
            seen += [answer.text, str(answer.headers)]
        seen.append(requests.get(f"{service.url}/openapi.json", timeout=10).text)
        seen.append(requests.get(f"{service.url}/metrics", headers={"X-API-Key": MARK}, timeout=10).text)
    assert "--api-key-file" in check_output(*seen)


def test_images_behind_signed_urls_at_the_http_service(check_output: Callable[..., str], site: Site) -> None:
    seen: list[str] = []
    with serving(Gated) as service:
        for url in signed_urls(site):
            for data in ({"image_url": url}, {"image_url": site.url("/a.jpg", says(b"1")), "depth_url": url}):
                answer = requests.post(f"{service.url}/predict", data={**data, "format": "ply"}, timeout=60)
                seen += [answer.text, str(answer.headers)]
                assert answer.status_code in (200, 422)
            for rest in ({"json": {"image_url": url}}, {"params": {"image_url": url}}):
                answer = requests.post(f"{service.url}/predict/ply", timeout=60, **rest)  # type: ignore[arg-type]
                seen += [answer.text[:1000], str(answer.headers)]
        answer = requests.get(f"{service.url}/metrics", timeout=10)
        check_output(*seen, answer.text)


def test_images_and_results_behind_signed_urls_at_runpod(check_output: Callable[..., str], site: Site) -> None:
    handler = runpod.create_handler(Gated(), ServiceSettings(fetch_private=True, fetch_seconds=10))
    image = base64.b64encode(b"12345").decode()
    results = [
        handler({"id": "job", "input": values})
        for url in signed_urls(site)
        for values in (
            {"image_url": url},
            {"image": image, "depth_url": url},
            {"image": image, "upload_url": url},
            {"image": url},
        )
    ]
    assert {"upload_failed", "fetch_failed", "invalid_input"} <= {result.get("code") for result in results}
    for result in results:
        result.pop("url", None)  # The caller gets back the URL that it has sent.
    check_output(*results)


@pytest.mark.parametrize("code", [403, None])
def test_a_bucket_that_refuses_results(check_output: Callable[..., str], site: Site, code: int | None) -> None:
    class Refusing(dict[str, Answer]):
        def __missing__(self, path: str) -> Answer:
            return status(code or 500)

    site.answers = Refusing()
    settings = ServiceSettings(
        bucket_endpoint_url=f"http://127.0.0.1:{site.port if code else 9}",
        bucket_access_key_id=f"AKIA{MARK}",
        bucket_secret_access_key=MARK,
        bucket_name="splats",
    )
    handler = runpod.create_handler(Gated(), settings)
    result = handler({"id": "job", "input": {"image": base64.b64encode(b"12345").decode()}})
    assert result["code"] == "cannot_write", result
    assert "splats" in check_output(result)


def test_errors_of_libraries_in_the_log_of_a_service(check_output: Callable[..., str]) -> None:
    error = requests.ConnectionError(f"HTTPSConnectionPool(host='e.com'): url: /a{SIGNED} at https://u:{MARK}@e.com")
    assert refusals.error_body(error) == {"error": "the service failed; its log says why", "code": "internal_error"}
    pipeline = Gated()
    pipeline.failure = error
    with serving(lambda: pipeline) as service:
        answer = requests.post(f"{service.url}/predict", files={"file": ("a.jpg", b"123")}, timeout=60)
    assert answer.status_code == 500
    assert "ConnectionError" in check_output(answer.text)


def test_a_model_that_cannot_be_loaded_in_the_log_of_a_service(check_output: Callable[..., str]) -> None:
    def load() -> SharpPipeline:
        raise requests.ConnectionError(f"url: /a{SIGNED}")

    with serving(load, is_ready=False) as service:
        answers_ = [requests.get(f"{service.url}/health", timeout=10).text for _ in range(3)]
    check_output(*answers_)


class SigningUnsplash(UnsplashServer):
    """Returns signed URLs of images; that of the first image leads nowhere."""

    def _answer(
        self, handler: BaseHTTPRequestHandler, path: list[str], query: dict[str, str], headers: dict[str, str]
    ) -> None:
        if path[2:] == ["download"]:
            host = "http://127.0.0.1:9" if path[1] == self.ids[0] else self.picture_url
            send_json(handler, {"url": f"{host}/{path[1]}.jpg{SIGNED}"}, 200, headers)
        else:
            super()._answer(handler, path, query, headers)


class SigningHub(HubServer):
    """Returns signed URLs for uploads, and refuses uploads in words that contain the URL."""

    is_refusing = False

    def _lfs_batch(self, request: Request) -> StubAnswer:
        answer = super()._lfs_batch(request)
        for entry in answer.content["objects"]:
            for action in entry.get("actions", {}).values():
                action["href"] += SIGNED
        return answer

    def _lfs_put(self, request: Request) -> StubAnswer:
        if self.is_refusing:
            raise RefusedError(403, f"Forbidden for url: {self.url}/{SIGNED}, Authorization: Bearer {MARK}abcdef")
        return super()._lfs_put(request)


class RefusingGsplat(GsplatServer):
    """Refuses everything, in words that contain a URL."""

    def call(self, procedure: str, argument: dict[str, Any]) -> Any:
        raise RefusalError(403, "FORBIDDEN", f"not from https://u:{MARK}@e.com/{SIGNED}")


@pytest.fixture
def unsplash(monkeypatch: pytest.MonkeyPatch) -> Iterator[UnsplashServer]:
    monkeypatch.setattr("sharp_cog.dataset.unsplash.RETRIES", RetryPolicy(max_tries=1, first_wait_s=0.0))
    server = SigningUnsplash(3)
    yield server
    server.close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[SigningHub]:
    server = SigningHub()
    for name, value in {**server.environment, "HF_TOKEN": SECRETS["HF_TOKEN"]}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    yield server
    server.close()


@pytest.fixture
def gsplat() -> Iterator[GsplatServer]:
    server = RefusingGsplat()
    yield server
    server.close()


@pytest.fixture
def settings(tmp_path: Path, unsplash: UnsplashServer, hub: HubServer, gsplat: GsplatServer) -> DatasetSettings:
    return DatasetSettings(
        source="list",
        unsplash_access_key=ACCESS_KEY,
        unsplash_api_url=unsplash.url,
        runs_dir=str(tmp_path / "runs"),
        hf_upload=True,
        hf_repo_id="somebody/splats",
        gsplat_upload=True,
        gsplat_base=gsplat.url,
    )


def contents(folder: Path) -> list[str]:
    """Return the text of all files, byte for byte."""
    return [path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file()]


def test_a_dataset_run_and_what_it_publishes(
    check_output: Callable[..., str], settings: DatasetSettings, hub: SigningHub
) -> None:
    run_of(settings).work()
    published = hub.files(settings.hf_repo_id)
    assert len(published) > 5
    text = check_output(*contents(settings.run_dir), *(content.decode("latin-1") for content in published.values()))
    assert "cannot be read (ConnectionError)" in text, "the first picture fails"
    assert "is not shared" in text


def test_a_dataset_run_without_the_right_to_publish(
    check_output: Callable[..., str], settings: DatasetSettings, hub: SigningHub
) -> None:
    hub.is_refusing = True
    with pytest.raises(HubError, match="the hub refuses") as caught:
        run_of(settings).work()
    check_output(caught.value, trace(caught.value), *contents(settings.run_dir))

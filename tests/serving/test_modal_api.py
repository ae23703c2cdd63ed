"""The HTTP service on Modal."""

from __future__ import annotations

import runpy
from typing import Any

import modal
import pytest
import requests

from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.serving import modal_api
from tests.gated import Gated
from tests.service import listening


def test_the_app_has_the_name_that_its_users_know() -> None:
    assert modal_api.app.name == "sharp-api"
    assert isinstance(modal_api.api, modal.Function)


@pytest.mark.filterwarnings("ignore:.*executing locally and will not have access:UserWarning")
def test_the_api_is_the_http_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SharpPipeline, "load", lambda settings: Gated())
    with listening(modal_api.api.local()) as service:
        service.wait_until_ready()
        answer = requests.post(f"{service.url}/predict/ply", files={"file": ("beach.png", b"abc")}, timeout=60)
        metrics = requests.get(f"{service.url}/metrics", timeout=10).text
    assert answer.content.startswith(b"ply\n")
    assert 'filename="beach.ply"' in answer.headers["Content-Disposition"]
    assert 'door="modal",outcome="ok"' in metrics


@pytest.mark.filterwarnings("ignore:.*executing locally and will not have access:UserWarning")
@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import:RuntimeWarning")
@pytest.mark.parametrize(
    ("variables", "is_asked_by_modal"),
    [({}, True), ({"SHARP_API_KEY": "sesame"}, False), ({"SHARP_MODAL_PUBLIC": "true"}, False)],
)
def test_modal_asks_for_its_token_unless_the_service_has_a_key_or_is_public(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], is_asked_by_modal: bool
) -> None:
    asked: list[dict[str, Any]] = []
    asgi_app = modal.asgi_app

    def recorded(**given: Any) -> Any:
        asked.append(given)
        return asgi_app(**given)

    monkeypatch.setattr(modal, "asgi_app", recorded)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    runpy.run_module("sharp_cog.serving.modal_api")
    assert asked == [{"requires_proxy_auth": is_asked_by_modal}]

"""The HTTP service on Modal."""

from __future__ import annotations

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

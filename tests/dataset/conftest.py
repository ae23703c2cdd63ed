"""Fixtures of the tests of dataset runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dataset.client import REPO
from tests.dataset.hub_server import HubServer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A stub of the hub with an empty repository, which the real client of this process uses."""
    server = HubServer()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    server.create(REPO, "dataset")
    yield server
    server.close()

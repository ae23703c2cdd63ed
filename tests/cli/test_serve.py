"""`sharp-cog serve` up to the server; `tests/e2e/test_serve_command.py` starts a real one."""

import socket
from typing import Any

import pytest
import uvicorn

import sharp_cog.serving.http
from sharp_cog.config.settings import Settings
from sharp_cog.pipeline.pipeline import SharpPipeline
from tests.cli.commands import run


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Settings of the model, address and configuration of the server that a command would run."""
    served: list[Any] = []

    def serve(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        (listener,) = sockets
        served.extend([listener.getsockname(), server.config])
        listener.close()

    monkeypatch.setattr(SharpPipeline, "load", served.append)
    monkeypatch.setattr(sharp_cog.serving.http, "create_app", lambda load, settings: load())
    monkeypatch.setattr(uvicorn.Server, "run", serve)
    return served


def test_the_service_listens_where_it_is_told(served: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sharp_cog")
    assert run("serve", "--http", "--model", "lift", "--port", 0) == 0
    settings, (host, _), config = served
    assert isinstance(settings, Settings)
    assert (settings.model, host, config.log_level) == ("lift", "127.0.0.1", "warning")
    assert config.timeout_graceful_shutdown == 601, "a request may take SHARP_REQUEST_SECONDS"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--host", "nowhere.invalid"), "cannot listen on nowhere.invalid, port 8000"),
        (("--port", 70000), "cannot listen on 127.0.0.1, port 70000"),
    ],
)
def test_an_address_that_cannot_be_used_is_reported(
    served: list[Any], capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], message: str
) -> None:
    assert run("serve", *arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.endswith("choose another --host or --port [invalid_setting]\n")


def test_a_missing_package_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    assert run("serve") == 1
    assert "pip install -e '.[http]'" in capsys.readouterr().err

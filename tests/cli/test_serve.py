"""`sharp-cog serve` up to the server; `tests/e2e/test_serve_command.py` starts a real one."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import sharp_cog.serving.http
from sharp_cog.config.services import ServiceSettings
from sharp_cog.config.settings import Settings
from sharp_cog.pipeline.pipeline import SharpPipeline
from tests.cli.commands import run


@pytest.fixture
def services() -> list[ServiceSettings]:
    """Settings of the services that commands would run."""
    return []


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, services: list[ServiceSettings]) -> list[Any]:
    """Settings of the model, address and configuration of the server that a command would run."""
    served: list[Any] = []

    def serve(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        (listener,) = sockets
        served.extend([listener.getsockname(), server.config])
        listener.close()

    def create_app(load: Callable[[], object], settings: ServiceSettings) -> None:
        load()
        services.append(settings)

    monkeypatch.setattr(SharpPipeline, "load", served.append)
    monkeypatch.setattr(sharp_cog.serving.http, "create_app", create_app)
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


@pytest.mark.parametrize(
    ("host", "hosts"),
    [
        ("127.0.0.1", ("localhost", "127.0.0.1", "::1")),
        ("localhost", ("localhost", "127.0.0.1", "::1")),
        ("127.0.0.5", ("localhost", "127.0.0.1", "::1", "127.0.0.5")),
        ("0.0.0.0", ()),
    ],
)
def test_a_service_for_this_machine_alone_answers_to_its_names_alone(
    served: list[Any], services: list[ServiceSettings], host: str, hosts: tuple[str, ...]
) -> None:
    assert run("serve", "--model", "lift", "--host", host, "--port", 0) == 0
    assert run("serve", "--model", "lift", "--host", host, "--port", 0, "--allowed-hosts", "a.example") == 0
    assert [settings.allowed_hosts for settings in services] == [hosts, ("a.example",)]


def test_a_service_for_other_machines_without_a_key_says_what_that_means(
    served: list[Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    warning = "everybody who reaches this machine at port"
    assert run("serve", "--model", "lift", "--host", "0.0.0.0", "--port", 0) == 0
    assert warning in caplog.text
    assert "set SHARP_API_KEY" in caplog.text
    caplog.clear()
    assert run("serve", "--model", "lift", "--port", 0) == 0
    monkeypatch.setenv("SHARP_API_KEY", "sesame")
    assert run("serve", "--model", "lift", "--host", "0.0.0.0", "--port", 0) == 0
    assert warning not in caplog.text


def test_keys_come_from_a_file(served: list[Any], services: list[ServiceSettings], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# the page's\nsesame-1\n\n  sesame-2\n")
    assert run("serve", "--model", "lift", "--port", 0, "--api-key-file", tmp_path / "keys") == 0
    assert services[0].api_keys == ("sesame-1", "sesame-2")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file or directory"), (b"# none\n", "the file has no key"), (b"\xff", "it is not text")],
)
def test_a_file_without_a_key_never_opens_the_service(
    served: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    assert run("serve", "--model", "lift", "--port", 0, "--api-key-file", tmp_path / "keys") == 1
    assert message in capsys.readouterr().err
    assert served == []


def test_a_key_on_the_command_line_is_refused_with_where_it_belongs(
    served: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("serve", "--model", "lift", "--port", 0, "--api-key", "sesame") == 1
    error = capsys.readouterr().err
    assert "set SHARP_API_KEY, or give --api-key-file FILE" in error
    assert "sesame" not in error
    assert served == []

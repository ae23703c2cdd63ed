"""The process in front of coglet: its start, its signals and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest
import requests

from sharp_cog.errors import SettingError
from sharp_cog.serving import cog_server, cog_worker
from tests.serving.guarded_cog import IMAGE, SCHEMA, GuardedCog, guarded_cog


def coglet_of(server: GuardedCog) -> psutil.Process:
    (coglet,) = psutil.Process(server.process.pid).children()
    return coglet


def test_after_sigterm_the_running_prediction_ends_and_everything_else_is_dropped(tmp_path: Path) -> None:
    with guarded_cog(tmp_path / "server", SHARP_COG_WAIT_SECONDS="60") as server:
        children = psutil.Process(server.process.pid).children(recursive=True)
        answers: dict[str, requests.Response] = {}

        def predict(name: str, seconds: float) -> None:
            answers[name] = server.predict({"seconds": seconds})

        running = threading.Thread(target=predict, args=("running", 2.0))
        waiting = threading.Thread(target=predict, args=("waiting", 0.0))
        running.start()
        time.sleep(0.5)
        waiting.start()
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as stalled, socket.create_connection((host, int(port))):
            stalled.sendall(
                b"POST /predictions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                b"Content-Length: 1000\r\n\r\n{"
            )
            time.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
            running.join(timeout=20)
            waiting.join(timeout=20)
            assert server.process.wait(timeout=15) == 0
        assert answers["running"].json()["status"] == "succeeded"
        assert answers["waiting"].status_code == 503
        assert "Traceback" not in server.log()
        _, alive = psutil.wait_procs(children, timeout=5)
        assert alive == []
        assert list((tmp_path / "server" / "tmp").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_if_coglet_ends_the_server_ends_with_its_code(tmp_path: Path, number: signal.Signals) -> None:
    with guarded_cog(tmp_path / "server") as server:
        coglet_of(server).send_signal(number)
        expected = 128 + signal.SIGKILL if number == signal.SIGKILL else 0
        assert server.process.wait(timeout=20) == expected
        assert f"Cog's server has ended with code {-number if number == signal.SIGKILL else 0}" in server.log()


def test_with_the_key_the_server_can_be_shut_down_by_a_request(tmp_path: Path) -> None:
    with guarded_cog(tmp_path / "server", SHARP_API_KEY="k") as server:
        assert requests.post(f"{server.url}/shutdown", timeout=10).status_code == 401
        assert server.process.poll() is None
        assert requests.post(f"{server.url}/shutdown", headers={"X-API-Key": "k"}, timeout=10).status_code == 200
        assert server.process.wait(timeout=20) == 0


def test_health_is_answered_before_the_model_is_loaded(tmp_path: Path) -> None:
    with guarded_cog(tmp_path / "server", is_ready=False) as server:
        server.wait_for("STARTING")
        answer = server.predict()
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        server.wait_for("READY")
        server.process.kill()
        server.process.wait(timeout=10)


@pytest.mark.skipif(not Path("/proc").exists(), reason="only Linux ends a child with its parent")
def test_coglet_does_not_outlive_a_killed_server(tmp_path: Path) -> None:
    with guarded_cog(tmp_path / "server") as server:
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert len(children) >= 2
        os.kill(server.process.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(children, timeout=15)
        assert alive == []


def test_bad_addresses_settings_and_folders_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cog_server.main([]) == 2
    assert ".cog/openapi_schema.json cannot be read" in capsys.readouterr().err
    (tmp_path / ".cog").mkdir()
    (tmp_path / ".cog" / "openapi_schema.json").write_text(json.dumps(SCHEMA), encoding="ascii")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert cog_server.main(["--port", str(taken.getsockname()[1])]) == 2
    assert "choose another --host or --port" in capsys.readouterr().err
    monkeypatch.setenv("SHARP_REQUEST_SECONDS", "soon")
    assert cog_server.main([]) == 2
    assert "SHARP_REQUEST_SECONDS is 'soon'" in capsys.readouterr().err
    (tmp_path / "file").touch()
    monkeypatch.setattr(cog_worker, "PREDICTIONS", tmp_path / "file" / "predictions")
    with pytest.raises(SettingError, match=r"Cog's server cannot write to .*: remove it, or make it writable"):
        cog_server.check_start()


def test_the_inputs_that_are_files_come_from_the_schema() -> None:
    root = Path(__file__).parents[2]
    schema = json.loads((root / "openapi_schema.json").read_text(encoding="utf-8"))
    properties = schema["components"]["schemas"]["Input"]["properties"]
    assert cog_server.file_fields_of(properties) == {"image", "depth"}
    assert IMAGE.startswith("data:")

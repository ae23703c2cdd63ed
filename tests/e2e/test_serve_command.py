"""`sharp-cog serve --http` as a person starts and stops it: a real process and real signals."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import requests
import torch

from benchmarks.attack.http_attacks import stop_under_attack
from tests.e2e.http_server import HttpServer, started_http_server
from tests.images import png
from tests.parity import small_state


@pytest.mark.slow
def test_sigterm_ends_the_service_in_time_with_success_whatever_clients_do(tmp_path: Path) -> None:
    seconds, code = stop_under_attack(tmp_path)
    assert code == 0
    assert seconds < 10


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_the_service_runs_until_it_is_stopped_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    torch.save(small_state(), tmp_path / "small.pt")
    flags = ("--checkpoint", str(tmp_path / "small.pt"), "--device", "cpu", "--precision", "float32")
    with started_http_server(tmp_path / "server", *flags) as server:
        server.wait_until_ready()
        answer = requests.post(
            f"{server.url}/predict/splat", files={"file": png()}, data={"max_gaussians": 100}, timeout=60
        )
        assert len(answer.content) == 3200
        server.process.send_signal(number)
        log = log_of_the_end(server)
    assert server.process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 0}[number], log
    assert f"open {server.url} in a browser" in log
    assert "sharp on cpu: ready after" in log
    assert "/predict/splat: ok after" in log
    assert "Traceback" not in log
    assert not list(server.temporary.iterdir())


def log_of_the_end(server: HttpServer) -> str:
    server.process.wait(timeout=60)
    return server.log()


def test_a_service_that_cannot_load_its_model_ends_if_it_is_told_to(tmp_path: Path) -> None:
    flags = ("--checkpoint", str(tmp_path / "none.pt"))
    with started_http_server(tmp_path, *flags, SHARP_EXIT_ON_FAILURE="true") as server:
        log = log_of_the_end(server)
    assert server.process.returncode == 1, log
    assert "Traceback" not in log
    assert not list(server.temporary.iterdir())


@pytest.mark.slow
def test_a_bad_setting_is_reported_before_anything_is_served(tmp_path: Path) -> None:
    with started_http_server(tmp_path, SHARP_QUEUE_SIZE="many") as server:
        log = log_of_the_end(server)
    assert server.process.returncode == 1
    assert log.strip() == "error: SHARP_QUEUE_SIZE is 'many': give a whole number [invalid_setting]"


@pytest.mark.slow
def test_a_missing_checkpoint_is_reported_in_the_log_and_by_health(tmp_path: Path) -> None:
    with started_http_server(tmp_path, "--checkpoint", str(tmp_path / "none.pt")) as server:
        with pytest.raises(RuntimeError, match="the model cannot be loaded"):
            server.wait_until_ready()
        assert requests.get(f"{server.url}/health", timeout=5).json()["code"] == "checkpoint_missing"
        server.process.terminate()
        log = log_of_the_end(server)
    assert f"{tmp_path / 'none.pt'}" in log
    assert "Traceback" not in log

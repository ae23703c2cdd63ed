"""`sharp-cog dataset` without its work.

`tests/config/test_dataset.py` has its settings, and `tests/e2e/test_dataset_cli.py` runs all of it in its own process.
"""

import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

import sharp_cog.dataset.build
import sharp_cog.dataset.show
from sharp_cog.cli import dataset
from sharp_cog.dataset.journal import Journal
from tests.cli.commands import run


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Journal], None]], None]:
    """Returns a function that sets what a run does, given its journal."""

    def set_work(function: Callable[[Journal], None]) -> None:
        def build(settings: object, journal: Journal, sharp: object) -> SimpleNamespace:
            return SimpleNamespace(stop=lambda: None, work=lambda: function(journal))

        monkeypatch.setattr(sharp_cog.dataset.build, "build", build)
        monkeypatch.setattr(sharp_cog.dataset.show, "show", lambda run: nullcontext())

    return set_work


def with_counts(monkeypatch: pytest.MonkeyPatch, **counts: int) -> None:
    monkeypatch.setattr(Journal, "counts", lambda journal: counts)


@pytest.mark.parametrize(
    ("counts", "exit_code"),
    [({}, 0), ({"done": 3}, 0), ({"done": 3, "failed": 1}, 0), ({"failed": 2}, 1)],
)
def test_a_run_fails_only_if_all_of_its_photographs_failed(
    work: Callable[[Callable[[Journal], None]], None],
    monkeypatch: pytest.MonkeyPatch,
    counts: dict[str, int],
    exit_code: int,
) -> None:
    work(lambda journal: None)
    with_counts(monkeypatch, **counts)
    assert run("dataset", "run", "--input-dir", ".") == exit_code


def test_the_first_signal_finishes_the_work_in_progress(caplog: pytest.LogCaptureFixture) -> None:
    stops: list[str] = []
    with dataset._stop_on_signals(lambda: stops.append("stop")) as received:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stops == ["stop"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert received == [signal.SIGTERM, signal.SIGINT]
    assert "press Ctrl-C again to stop at once" in caplog.text
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_stopped_run_is_exit_code_130(work: Callable[[Callable[[Journal], None]], None]) -> None:
    work(lambda journal: os.kill(os.getpid(), signal.SIGINT))
    assert run("dataset", "run", "--input-dir", ".") == 130


def test_a_run_that_another_process_works_on_is_refused(
    work: Callable[[Callable[[Journal], None]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    work(lambda journal: None)
    Path("runs/main").mkdir(parents=True)
    with FileLock("runs/main/.lock"):
        assert run("dataset", "run", "--input-dir", ".") == 1
    assert "RUN_ID is 'main', which another process is working on" in capsys.readouterr().err


def test_a_folder_of_runs_that_cannot_be_created_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs").write_text("a file")
    assert run("dataset", "run", "--input-dir", ".") == 1
    assert "check RUNS_DIR" in capsys.readouterr().err


def test_an_env_file_that_cannot_be_read_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> dict[str, str | None]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("dotenv.dotenv_values", refuse)
    assert run("dataset", "status") == 1
    assert ".env cannot be read: Permission denied: check its permissions" in capsys.readouterr().err

"""`sharp_cog.cli`: exit codes, usage and messages that all commands share."""

import os
import signal

import pytest

from sharp_cog import __version__
from sharp_cog.cli import download, main
from sharp_cog.formats import FORMATS
from tests.cli.commands import run


@pytest.mark.parametrize("arguments", [[], ["predict"], ["predict", "a.jpg", "--model", "magic"], ["dance"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: sharp-cog" in capsys.readouterr().err


def test_version_is_the_version_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.split() == ["sharp-cog", __version__]


def test_help_lists_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("predict", "convert"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        printed = capsys.readouterr().out
        assert all(name in printed for name in FORMATS)


def test_only_verbose_shows_where_an_error_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "no.ply") == 2
    assert capsys.readouterr().err == "error: no.ply cannot be read: No such file or directory [invalid_input]\n"
    assert run("info", "no.ply", "-v") == 2
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_is_exit_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "run", interrupt)
    assert run("download") == 130
    assert capsys.readouterr().err == "stopped\n"


def test_sigterm_cleans_up_before_it_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    events = []

    def wait_for_signal(arguments: object) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            events.append("cleaned up")
        return 0

    monkeypatch.setattr(download, "run", wait_for_signal)
    monkeypatch.setattr(signal, "raise_signal", lambda number: events.append(signal.Signals(number).name))
    assert run("download") == 130
    assert events == ["cleaned up", "SIGTERM"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

"""The check for machines with a GPU, with steps that need none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import Outcome, Step

ROOT = Path(__file__).parents[2]


def outcome_of(folder: Path, program: str, *, limit_s: float = 30, needs: tuple[str, ...] = ()) -> Outcome:
    step = Step(name="step", arguments=["-c", program], limit_s=limit_s, needs=needs)
    return gpu_check.run_step(step, sys.executable, dict(os.environ), folder, left_s=60)


def test_a_step_reports_its_result_and_keeps_its_output(tmp_path: Path) -> None:
    assert outcome_of(tmp_path, "print('fine')").result == "passed"
    assert (tmp_path / "step.log").read_text() == "fine\n"


def test_a_failed_step_names_the_last_line_of_its_output(tmp_path: Path) -> None:
    found = outcome_of(tmp_path, "raise SystemExit('the device is on fire')")
    assert (found.result, found.reason) == ("failed", "exit code 1: the device is on fire")


def test_a_step_that_takes_too_long_ends_with_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    program = (
        "import pathlib, subprocess, sys, time; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        f"pathlib.Path({str(pid)!r}).write_text(str(child.pid)); time.sleep(60)"
    )
    assert outcome_of(tmp_path, program, limit_s=3).result == "timed out"
    child = Path(f"/proc/{pid.read_text()}/stat")

    def is_alive() -> bool:
        # A dead process stays in the table until its parent reads its exit code.
        try:
            return child.read_text().split()[2] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    deadline = time.monotonic() + 10
    while is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_step_without_its_packages_is_not_run(tmp_path: Path) -> None:
    found = outcome_of(tmp_path, "raise SystemExit(1)", needs=("json", "no_such_package"))
    assert (found.result, found.reason) == ("not run", "not installed: no_such_package")
    assert not (tmp_path / "step.log").exists()


def test_half_a_report_does_not_stop_the_check(tmp_path: Path) -> None:
    (tmp_path / "stream.json").write_text('{"num": ')
    (step,) = (step for step in gpu_check.steps(tmp_path) if step.name == "stream")
    with pytest.raises(ValueError, match="Expecting value"):
        step.figures("", tmp_path)
    broken = Step(name="stream", arguments=["-c", ""], limit_s=30, figures=step.figures)
    found = gpu_check.run_step(broken, sys.executable, dict(os.environ), tmp_path, left_s=60)
    assert found.result == "passed"
    assert "unreadable" in found.figures


def test_every_needed_package_is_pinned() -> None:
    pins = gpu_check.requirements()
    assert pins.keys() == gpu_check.PACKAGES.keys()
    assert all("==" in line for line in pins.values())


def test_the_steps_run_files_that_exist(tmp_path: Path) -> None:
    for step in gpu_check.steps(tmp_path):
        for argument in step.arguments:
            if argument.startswith("tests/"):
                assert (ROOT / argument).is_file()
            elif argument.startswith("benchmarks."):
                assert (ROOT / f"{argument.replace('.', '/')}.py").is_file()
            elif "\n" in argument:
                compile(argument, step.name, "exec")


def test_all_steps_run_after_a_failure_and_the_table_has_their_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = {"device": "Card", "capability": "9.0", "memory_gb": 1, "torch": "2", "cuda": "13", "python": "3"}
    report = tmp_path / "device.xml"
    tests = """def test_one():
    print('51.2 dB')
def test_two():
    assert 1 == 2
"""
    (tmp_path / "test_device.py").write_text(tests)
    pytest_step = Step(
        name="device",
        arguments=[
            *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, str(tmp_path / "test_device.py")),
            *(f"--junitxml={report}", "-o", "junit_logging=all"),
        ],
        limit_s=60,
        figures=gpu_check.steps(tmp_path)[1].figures,
    )
    film = Step(
        name="film",
        arguments=["-c", 'print(\'{"film_s": 2.5, "psnr_to_cpu_db": 48}\')'],
        limit_s=30,
        figures=gpu_check.steps(tmp_path)[-1].figures,
    )
    monkeypatch.setattr(gpu_check, "FACTS", f"print({json.dumps(facts)!r})")
    monkeypatch.setattr(gpu_check, "install", lambda *arguments: "")
    monkeypatch.setattr(gpu_check, "steps", lambda folder: [pytest_step, film])
    assert gpu_check.check(sys.executable, tmp_path, wheels=None, limit_s=60, only=()) == 1
    written = json.loads((tmp_path / "gpu-check.json").read_text())
    assert [outcome["result"] for outcome in written["outcomes"]] == ["failed", "passed"]
    table = (tmp_path / "gpu-check.md").read_text()
    assert "| test_one | passed |" in table
    assert "51.2 dB" in table
    assert "| test_two | failure |" in table
    assert "Film: 2.5 s, 48.0 dB" in table
    assert table in capsys.readouterr().out


def test_a_machine_without_a_gpu_is_told_so(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "gpu-check"), "--python", sys.executable, "--out", str(tmp_path)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "run it on a machine with an NVIDIA GPU" in result.stderr
    assert "Traceback" not in result.stderr

"""Campaigns for tests: one process runs all targets of a test, as many at once as there are cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.harness import Report

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def fuzzed(request: pytest.FixtureRequest) -> Callable[[str, int], Report]:
    """Gives the report of a target after so many inputs; runs at once what all tests of this session will ask for."""
    selected = {
        (str(item.callspec.params["target_name"]), item.callspec.params["num"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and "fuzzed" in item.fixturenames
    }
    reports: dict[tuple[str, int], Report] = {}

    def report_of(target_name: str, num: int) -> Report:
        if (target_name, num) not in reports:
            names = sorted(name for name, num_of_it in selected if num_of_it == num)
            folder = ROOT / ".fuzz" / f"tests-{num}"
            command = [sys.executable, "-m", "tests.fuzz", *names, "--runs", str(num), "--folder", str(folder)]
            # Not in this process, whose threads would not survive a fork.
            environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
            print(done.stdout)
            assert done.returncode in (0, 1), "the campaign itself failed"
            for name in names:
                reports[name, num] = Report.read(folder / name / "report.json")
        return reports[target_name, num]

    return report_of

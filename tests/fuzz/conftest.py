"""Fuzzing campaigns for tests: one process runs all targets, as many at once as there are cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz.harness import Report, registry

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def fuzz_all() -> Callable[[int], dict[str, Report]]:
    """Runs every target on a number of inputs, and returns the reports by target."""

    def run(num: int) -> dict[str, Report]:
        folder = ROOT / ".fuzz" / f"tests-{num}"
        command = [sys.executable, "-m", "tests.fuzz", "--all", "--runs", str(num), "--folder", str(folder)]
        # In a process of its own: threads of this one would not survive a fork.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        print(done.stdout)
        assert done.returncode in (0, 1), "the campaign itself failed"
        return {name: Report.read(folder / name / "report.json") for name in registry()}

    return run

"""Both servers under a mix of good, bad and cancelled requests: right answers, and no leftovers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.soak.mix import Request, recipes
from benchmarks.soak.right import right_answers
from benchmarks.soak.run import SERVERS, run
from tests.e2e.cog_server import ROOT

Prepared = tuple[Sequence[Request], dict[int, str]]


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    """Some good requests, the same for both servers, and the right answers."""
    good = recipes("cog", 4)
    return good, right_answers(good)


@pytest.mark.slow
@pytest.mark.parametrize("server", sorted(SERVERS))
def test_a_few_requests_are_answered_right_and_leave_nothing(server: str, prepared: Prepared, tmp_path: Path) -> None:
    report = run(server, tmp_path, *prepared, num_requests=20, num_clients=3, bad_share=0.6, cancelled_share=0.2)
    print(report.table())
    assert report.wrongs() == []
    assert Counter(record.case.kind for record in report.records) == {"good": 4, "bad": 12, "cancelled": 4}


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("server", sorted(SERVERS))
def test_a_thousand_requests_leave_nothing_and_no_more_memory(server: str, tmp_path: Path) -> None:
    path = tmp_path / "soak.json"
    command = [sys.executable, "-m", "benchmarks.soak", "--soak", server, "--json", str(path)]
    subprocess.run(command, check=True, timeout=7200, cwd=ROOT)
    (report,) = json.loads(path.read_text(encoding="utf-8"))
    assert report["wrong"] == []
    assert report["growth"] <= 0.05
    kinds: Counter[str] = Counter()
    for name, number in report["kinds"].items():
        kinds[name.partition(":")[0]] += number
    assert kinds == {"good": 800, "bad": 100, "cancelled": 100}
    assert report["outcomes"]["cancelled"]["requests"] > 50

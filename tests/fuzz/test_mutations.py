"""Broken input to everything that reads bytes ends in a result, or soon and in little memory in a reasoned error.

`scripts/fuzz TARGET` runs the same; `scripts/fuzz TARGET --input FILE` repeats one input.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fuzz.harness import Report, registry

FEW, MANY = 25, 20_000
"""Inputs for each target by default, and at night."""


@pytest.mark.parametrize(
    "num",
    [
        # The first test of each number runs the campaign for all of them.
        pytest.param(FEW, marks=pytest.mark.timeout(600)),
        pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(6 * 3600)]),
    ],
)
def test_every_input_ends_in_a_result_or_in_an_error_with_a_code(
    num: int, fuzz_all: Callable[[int], dict[str, Report]]
) -> None:
    reports = fuzz_all(num)
    findings = [
        f"{name}, seed {report.seed}: {finding.path} {finding.reason}"
        for name, report in reports.items()
        for finding in report.findings
    ]
    assert not findings, "\n".join(findings)
    assert reports.keys() == registry().keys()
    assert all(report.inputs >= num for report in reports.values())

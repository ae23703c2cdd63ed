"""Whatever reads bytes gets broken ones: it gives a result, or soon and in little memory an error that says why not.

`scripts/fuzz TARGET` runs the same; `scripts/fuzz TARGET --input FILE` repeats one input.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fuzz.harness import Report, registry


# The first test of each number waits for all of them.
@pytest.mark.parametrize(
    "num",
    [
        pytest.param(500, marks=pytest.mark.timeout(1200)),
        pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(6 * 3600)]),
    ],
)
@pytest.mark.parametrize("target_name", registry())
def test_every_input_has_a_result_or_an_error_with_its_code(
    target_name: str, num: int, fuzzed: Callable[[str, int], Report]
) -> None:
    report = fuzzed(target_name, num)
    shown = "\n".join(f"{finding.path} {finding.reason}" for finding in report.findings)
    assert not report.findings, f"{target_name}, seed {report.seed}:\n{shown}"
    assert report.inputs >= num

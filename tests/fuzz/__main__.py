"""Fuzzes everything that reads bytes: `scripts/fuzz`.

Prints a row for each target: number of inputs, results and refusals by code, and the largest CPU time and memory of one
input. Exits with 1 if an input did not end as it should; such inputs are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.fuzz import campaign
from tests.fuzz.harness import Report, Target, registry

FOLDER = Path(__file__).parents[2] / ".fuzz"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="see --list")
    parser.add_argument("--all", action="store_true", help="every target")
    parser.add_argument("--list", action="store_true", help="print the names of all targets")
    parser.add_argument("--runs", type=int, default=20_000, help="inputs for each target (default: %(default)s)")
    parser.add_argument("--coverage", action="store_true", help="let atheris choose inputs by the code that they reach")
    parser.add_argument("--seconds", type=float, help="stop each target after this many seconds")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers (default: %(default)s)")
    parser.add_argument("--jobs", type=int, help="targets at once (default: the number of cores)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder for findings (default: .fuzz)")
    parser.add_argument("--input", type=Path, help="run only this input, in this process, and let it fail")
    parser.add_argument("--json", type=Path, help="also write the reports to this file")
    options = parser.parse_args(arguments)
    known = _instrumented_registry() if options.coverage else registry()
    if options.list:
        print("\n".join(known))
        return 0
    names = list(known) if options.all else options.targets
    unknown = [name for name in names if name not in known]
    if not names or unknown:
        parser.error(f"no target is called {', '.join(unknown)}: see --list" if unknown else "name targets, or --all")
    if options.input is not None:
        print(known[names[0]].run(options.input.read_bytes()))
        return 0
    plan = campaign.Plan(num=options.runs, seed=options.seed, seconds=options.seconds, folder=options.folder)
    print("| target | inputs | results | refused | refusals: most CPU s | most MB | results: most CPU s | most MB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    engine = "coverage" if options.coverage else "mutations"
    reports = campaign.run(
        [known[name] for name in names], plan, engine=engine, num_jobs=options.jobs, on_report=_print_row
    )
    for report in reports:
        for finding in report.findings:
            print(f"\n{report.target}, seed {report.seed}: {finding.path} {finding.reason}")
    if options.json:
        options.json.write_text(json.dumps([asdict(report) for report in reports], indent=1), encoding="utf-8")
    return 1 if any(report.findings for report in reports) else 0


def _instrumented_registry() -> dict[str, Target]:
    """All targets, and with them our modules and Pillow's, each branch of which tells atheris that it was taken."""
    import atheris

    with atheris.instrument_imports(include=["sharp_cog", "PIL"]):
        return registry()


def _print_row(report: Report) -> None:
    refused = ", ".join(f"{num} {code}" for code, num in sorted(report.refused.items())) or "none"
    print(
        f"| {report.target} | {report.inputs} | {report.results} | {refused} | {report.slowest_refusal_s:.3f} "
        f"| {report.refusal_growth_bytes / 1e6:.0f} | {report.slowest_result_s:.3f} "
        f"| {report.result_growth_bytes / 1e6:.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())

"""Attacks on the servers, with good requests beside them: what they cost, and how soon they are over.

    scripts/benchmark --attack
    scripts/benchmark --attack stalled-uploads unread-answers

Each attack meets a server of its own, as a person starts it, with the model `lift`. The table has the good requests
that were answered meanwhile and their seconds, memory and disk at most, and the seconds until everything was as before.
The exit code is 1 if a good request was not answered, or if the server did not recover.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.attack import cog_attacks, http_attacks
from benchmarks.attack.http_attacks import silent_url, stop_under_attack
from benchmarks.attack.measure import HEADER, Result, measure
from benchmarks.attack.target import cog_target, http_target

ATTACKS = {**http_attacks.ATTACKS, **cog_attacks.ATTACKS}
"""All attacks by name; those whose names begin with `cog-` are on Cog's server, the rest on the HTTP service."""
MAX_STOP_SECONDS = 10.0
"""Maximum number of seconds from SIGTERM to the end of a service without a prediction under way."""


def main() -> int:
    """Run the attacks and print the table."""
    parser = argparse.ArgumentParser(description="Attacks on the servers, with good requests beside them.")
    parser.add_argument(
        "--attack", choices=[*ATTACKS, "stop"], nargs="*", metavar="NAME", help=f"{', '.join(ATTACKS)} or stop"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    arguments = parser.parse_args()
    results: list[Result] = []
    is_stopped = True
    for name in arguments.attack or [*ATTACKS, "stop"]:
        with tempfile.TemporaryDirectory() as folder:
            if name == "stop":
                seconds, code = stop_under_attack(Path(folder))
                print(f"SIGTERM under attack: ended after {seconds:.1f} s with exit code {code}", flush=True)
                is_stopped = seconds < MAX_STOP_SECONDS and code == 0
                continue
            results.append(attacked(name, Path(folder)))
            print(" | ".join(results[-1].row()), flush=True)
            for wrong in sorted(set(results[-1].wrong)):
                print(f"  good request: {results[-1].wrong.count(wrong)} x {wrong}", flush=True)
    print(f"| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}")
    for result in results:
        print(f"| {' | '.join(result.row())} |")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n", encoding="utf-8")
    is_right = all(not result.wrong and result.recovery_s is not None for result in results)
    return 0 if is_right and is_stopped else 1


def attacked(name: str, folder: Path) -> Result:
    """Start the service, and attack it."""
    if name in cog_attacks.ATTACKS:
        with silent_url() as url, cog_target(folder) as target:
            return measure(target, ATTACKS[name](target.address, url))
    limits = (1024, 1024) if name == "half-open" else None
    with silent_url() as url, http_target(folder, descriptors=limits, SHARP_FETCH_PRIVATE="true") as service:
        return measure(service, ATTACKS[name](service.address, url))


if __name__ == "__main__":
    sys.exit(main())

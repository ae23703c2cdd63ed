"""Load on Cog's server and on the HTTP service that checks every answer, the memory and all files.

    scripts/benchmark --soak
    scripts/benchmark --soak http --requests 300 --clients 8
    scripts/benchmark --soak http --attackers
    scripts/benchmark --soak cog --json soak.json

Each server runs as a person starts it, in its own process, with the model `lift`. Of a thousand requests, 10 % are bad
and 10 % are cancelled. The others have sixteen photographs of all formats, from tiny to 12 MP, and all output formats.
Each good answer must equal what a pipeline in this process writes, byte for byte, and each bad one must be the right
refusal. Afterwards no file, descriptor, thread or child may be left, and the memory must be as after the first hundred
requests. The exit code is 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from benchmarks.soak.mix import recipes
from benchmarks.soak.right import missing_formats, right_answers
from benchmarks.soak.run import SERVERS, run

NUM_RECIPES = 40
"""Number of different good requests: one film, and every other output several times."""


def main() -> int:
    """Soak one server or both, and print the reports."""
    parser = argparse.ArgumentParser(description="Load on the servers, with every answer, memory and files checked.")
    parser.add_argument(
        "--soak", choices=sorted(SERVERS), nargs="?", help="which server (default: one after the other)"
    )
    parser.add_argument(
        "--requests", type=int, default=1000, metavar="N", help="requests to each server (default: 1000)"
    )
    parser.add_argument(
        "--clients", type=int, default=4, metavar="N", help="clients of HTTP (default: 4); Cog takes one"
    )
    parser.add_argument(
        "--attackers", action="store_true", help="attackers beside the clients of HTTP, as --attack has them"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the mix (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    arguments = parser.parse_args()
    if min(arguments.requests, arguments.clients) < 1:
        parser.error("--requests and --clients must be at least 1")
    reports = []
    without = missing_formats()
    for frontend in [arguments.soak] if arguments.soak else sorted(SERVERS):
        good = recipes(frontend, NUM_RECIPES, without=without)
        right = right_answers(tqdm(good, desc="the right answers", unit="", leave=False))
        with tempfile.TemporaryDirectory() as folder, tqdm(total=arguments.requests, desc=frontend, unit="") as bar:
            report = run(
                frontend,
                Path(folder),
                good,
                right,
                num_requests=arguments.requests,
                num_clients=arguments.clients,
                seed=arguments.seed,
                on_done=bar.update,
                is_attacked=arguments.attackers and frontend == "http",
            )
        reports.append(report)
        print(report.table(), flush=True)
        if report.is_stopped:
            break
    if without:
        print(f"left out, since something is not installed: {', '.join(without)}")
    if arguments.json is not None:
        figures = [report.as_json() for report in reports]
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 1 if any(report.wrongs() + report.grown() for report in reports) else 0


if __name__ == "__main__":
    sys.exit(main())

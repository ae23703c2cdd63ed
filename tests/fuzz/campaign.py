"""Runs each target in a child process; if that crashes, hangs or takes all memory, the input is known."""

from __future__ import annotations

import faulthandler
import hashlib
import logging
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, NoReturn, Protocol

import psutil

from tests.fuzz import mutations
from tests.fuzz.harness import Examiner, Report, Target, keep

HANG_S = 40.0
"""Wall-clock seconds after which an input counts as hanging."""
KILL_BYTES = 4e9
"""Memory in bytes at which a child is stopped, before the machine suffers."""

_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Extent of a campaign.

    Attributes:
        num: Inputs that the engine generates for each target, besides the truncated seeds.
        seed: Seed of the random numbers.
        seconds: Seconds after which each target stops; None for no limit.
        folder: Folder of the campaign, with a folder for each target.
    """

    num: int
    seed: int
    folder: Path
    seconds: float | None = None


class Engine(Protocol):
    """Generates inputs from a target's seeds and examines them; `end` writes the report and ends the process."""

    def __call__(self, target: Target, examine: Examiner, plan: Plan, end: Callable[[], NoReturn]) -> None: ...


def mutations_engine(target: Target, examine: Examiner, plan: Plan, end: Callable[[], NoReturn]) -> None:
    """Examines truncated seeds, then mutations of the whole ones."""
    is_over = mutations.deadline(plan.seconds)
    seeds = target.seeds()
    examine.warm_up(seeds)
    for content in mutations.truncations(seeds, num_cuts=min(100, plan.num)):
        if not (examine.is_done or is_over()):
            examine(content)
    mutations.mutate(seeds, examine, num=plan.num, seed_number=plan.seed, until=lambda: examine.is_done or is_over())
    end()


def coverage_engine(target: Target, examine: Examiner, plan: Plan, end: Callable[[], NoReturn]) -> None:
    """Examines inputs that atheris derives from the seeds and from inputs that reached new code earlier."""
    import atheris

    is_over = mutations.deadline(plan.seconds)
    seeds, corpus = target.seeds(), plan.folder / target.name / "corpus"
    corpus.mkdir(exist_ok=True)
    for content in seeds:
        (corpus / hashlib.sha256(content).hexdigest()).write_bytes(content)
    examine.warm_up(seeds)

    def one(content: bytes) -> None:
        examine(content)
        if examine.num_inputs >= plan.num or examine.is_done or is_over():
            end()

    # The limits of atheris are off, because the parent process watches.
    limits = ["-timeout=0", "-rss_limit_mb=0", "-malloc_limit_mb=0", "-max_len=65536", f"-seed={plan.seed + 1}"]
    atheris.Setup([target.name, *limits, str(corpus)], one)
    atheris.Fuzz()


ENGINES: dict[str, Engine] = {"mutations": mutations_engine, "coverage": coverage_engine}


def run(
    targets: list[Target],
    plan: Plan,
    *,
    engine: str = "mutations",
    num_jobs: int | None = None,
    on_report: Callable[[Report], None] = lambda report: None,
) -> list[Report]:
    """Runs the targets, as many at once as there are cores.

    Call it in a process without threads: it forks.

    Returns:
        A report for each target, in their order.
    """
    waiting, running, reports = list(targets), list[_Child](), dict[str, Report]()
    try:
        while waiting or running:
            while waiting and len(running) < (num_jobs or os.cpu_count() or 1):
                running.append(_Child(waiting.pop(0), plan, engine))
            time.sleep(_POLL_S)
            for child in [child for child in running if child.is_finished()]:
                running.remove(child)
                reports[child.target.name] = child.report()
                on_report(reports[child.target.name])
    finally:
        for child in running:
            child.kill()
    return [reports[target.name] for target in targets]


class _Child:
    """A process that runs one target, seen from outside."""

    def __init__(self, target: Target, plan: Plan, engine: str) -> None:
        context = multiprocessing.get_context("fork")
        self.target, self._plan, self._engine = target, plan, engine
        self._folder = plan.folder / target.name
        self._folder.mkdir(parents=True, exist_ok=True)
        self._report_path = self._folder / "report.json"
        self._report_path.unlink(missing_ok=True)
        self._started_at: Any = context.RawValue("d", time.monotonic())
        self._reason = ""
        self._process: ForkProcess = context.Process(target=self._run, daemon=True)
        self._process.start()

    def is_finished(self) -> bool:
        """Returns whether the process has ended; stops it if it hangs or takes too much memory."""
        if not self._process.is_alive():
            return True
        waited = time.monotonic() - self._started_at.value
        num_bytes = psutil.Process(self._process.pid).memory_info().rss
        if waited > HANG_S:
            self._reason = f"had no answer after {waited:.0f} s"
        elif num_bytes > KILL_BYTES:
            self._reason = f"took {num_bytes / 1e9:.1f} GB of memory"
        if self._reason:
            self.kill()
        return bool(self._reason)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def report(self) -> Report:
        """Returns the report; if the process died, its current input is a finding."""
        self._process.join()
        if self._process.exitcode == 0 and not self._reason:
            return Report.read(self._report_path)
        log = (self._folder / "log").read_text(encoding="utf-8", errors="backslashreplace")[-3000:]
        reason = self._reason or f"ended the process, exit status {self._process.exitcode}"
        current = self._folder / "current"
        content = current.read_bytes() if current.exists() else b""
        report = Report(target=self.target.name, engine=self._engine, seed=self._plan.seed)
        report.findings.append(keep(content, f"{reason}\n{log}", self.target.name, self._folder))
        report.write(self._report_path)
        return report

    def _run(self) -> None:
        """Runs the target, in the child process."""
        log = os.open(self._folder / "log", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        for stream in (1, 2):  # C decoders and crash handlers write there.
            os.dup2(log, stream)
        faulthandler.enable()
        logging.disable()
        report = Report(target=self.target.name, engine=self._engine, seed=self._plan.seed)
        examine = Examiner(self.target, report, self._folder, on_start=self._sign_of_life)

        def end() -> NoReturn:
            report.write(self._report_path)
            os._exit(0)  # Nothing else ends a process cleanly from within atheris.

        ENGINES[self._engine](self.target, examine, self._plan, end)

    def _sign_of_life(self) -> None:
        self._started_at.value = time.monotonic()

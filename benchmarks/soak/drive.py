"""Drives a server with a mix, and checks everything that it does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.soak.door import Answer, Door, State
from benchmarks.soak.mix import Case
from benchmarks.soak.report import WARM_UP, Record, Report

MAX_SILENT = 2
"""After so many requests without an answer the server counts as hung, and no more are sent."""
QUIET_SECONDS = 15.0
"""How long a server may take to clean up after the last request."""


def soak(
    door: Door,
    cases: Sequence[Case],
    right: Mapping[int, str],
    *,
    num_clients: int,
    on_done: Callable[[], object] = lambda: None,
) -> Report:
    """Sends all requests, and sees what they leave behind; Ctrl-C ends it early.

    Args:
        door: The server.
        cases: The mix.
        right: Digests of the right answers, by recipe.
        num_clients: That ask at once.
        on_done: Called after every request.
    """
    report = Report(door=door.name, num_clients=num_clients, num_requests=len(cases))
    probe = next(case for case in cases if case.kind == "good")
    warm_up = min(WARM_UP, len(cases) // 2)
    report.memory_at_start, begun = door.memory(), time.monotonic()
    try:
        _check_probe(door, probe, right)
        report.before = _quiet_state(door)
        _drive(door, cases[:warm_up], right, num_clients, report, on_done)
        report.warm = _quiet_state(door, report.before)
        _drive(door, cases[warm_up:], right, num_clients, report, on_done)
        report.total_s = time.monotonic() - begun
        if _num_silent(report) < MAX_SILENT:
            _check_probe(door, probe, right)
            report.after = _quiet_state(door, report.warm, report.before)
            report.complaints = door.complaints([probe, *cases, probe])
    except KeyboardInterrupt:
        report.is_stopped = True
        report.total_s = time.monotonic() - begun
    return report


def wrong_with(case: Case, answer: Answer, right: Mapping[int, str]) -> str:
    """What is wrong with an answer; empty where nothing is."""
    if answer.outcome == "ok" and case.recipe is not None:  # Of a cancelled one: the cancelling came too late.
        return "" if answer.digest == right[case.recipe] else "the answer is not what the pipeline writes"
    if answer.outcome.startswith(case.expected):
        return ""
    return f"{answer.outcome[:200]!r}, where {case.expected!r} is right"


def _check_probe(door: Door, probe: Case, right: Mapping[int, str]) -> None:
    """Sends the request before and after which the server's state is compared: what it leaves is the same then."""
    wrong = wrong_with(probe, door.ask(probe), right)
    if wrong:
        raise RuntimeError(f"the server does not do what the first request asks for: {wrong}")


def _drive(
    door: Door,
    cases: Sequence[Case],
    right: Mapping[int, str],
    num_clients: int,
    report: Report,
    on_done: Callable[[], object],
) -> None:
    remaining, lock, is_over = iter(cases), threading.Lock(), threading.Event()

    def client() -> None:
        while not is_over.is_set():
            with lock:
                case = None if _num_silent(report) >= MAX_SILENT else next(remaining, None)
            if case is None:
                return
            begun = time.perf_counter()
            answer = door.ask(case)
            seconds, wrong = time.perf_counter() - begun, wrong_with(case, answer, right)
            with lock:
                record = Record(case=case, answer=answer, seconds=seconds, memory=door.memory(), wrong=wrong)
                report.records.append(record)
                on_done()

    with ThreadPoolExecutor(num_clients) as clients:
        tasks = [clients.submit(client) for _ in range(num_clients)]
        try:
            for task in tasks:
                task.result()
        finally:
            is_over.set()  # After Ctrl-C: what is under way ends, and no more is sent.


def _num_silent(report: Report) -> int:
    return sum(record.answer.is_silent for record in report.records)


def _quiet_state(door: Door, *earlier: State) -> State:
    """The server's state once it has cleaned up and stays so, at the latest after some seconds."""
    deadline = time.monotonic() + QUIET_SECONDS
    state = door.state()
    while True:
        time.sleep(0.2)
        last, state = state, door.state()
        is_clean = state.files == last.files and all(
            state.files == other.files and state.num_fds <= other.num_fds and state.num_processes <= other.num_processes
            for other in earlier
        )
        if is_clean or time.monotonic() > deadline:
            return state

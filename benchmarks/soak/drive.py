"""Drives a server with a mix of requests, and checks its answers and its state."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

from benchmarks.soak.mix import Case
from benchmarks.soak.report import WARM_UP, Record, Report
from benchmarks.soak.server import Answer, Server, State

MAX_SILENT = 2
"""Number of requests without an answer after which the server counts as hung, and no more are sent."""
QUIET_SECONDS = 15.0
"""Seconds that a server may take to clean up after the last request."""


def soak(
    server: Server,
    cases: Sequence[Case],
    right: Mapping[int, str],
    *,
    num_clients: int,
    on_done: Callable[[], object] = lambda: None,
    beside: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Report:
    """Send all requests, and compare the server's state before and after; Ctrl-C ends it early.

    Args:
        server: The server.
        cases: The mix.
        right: Digests of the right answers, by recipe.
        num_clients: Number of clients at once.
        on_done: Called after every request.
        beside: Returns a block in which the requests are sent, such as one that attacks the server meanwhile.
    """
    report = Report(server=server.name, num_clients=num_clients, num_requests=len(cases))
    probe = next(case for case in cases if case.kind == "good")
    warm_up = min(WARM_UP, len(cases) // 2)
    report.memory_at_start, start = server.memory(), time.monotonic()
    try:
        _check_probe(server, probe, right)
        report.before = _quiet_state(server)
        with beside():
            _drive(server, cases[:warm_up], right, num_clients, report, on_done)
        report.warm = _quiet_state(server, report.before)
        with beside():
            _drive(server, cases[warm_up:], right, num_clients, report, on_done)
        report.total_s = time.monotonic() - start
        if _num_silent(report) < MAX_SILENT:
            _check_probe(server, probe, right)
            report.after = _quiet_state(server, report.warm, report.before)
            report.complaints = server.complaints([probe, *cases, probe])
    except KeyboardInterrupt:
        report.is_stopped = True
        report.total_s = time.monotonic() - start
    return report


def wrong_with(case: Case, answer: Answer, right: Mapping[int, str]) -> str:
    """Return what is wrong with an answer, or an empty text."""
    if answer.outcome == "ok" and case.recipe is not None:  # A cancelled request may be finished already.
        return "" if answer.digest == right[case.recipe] else "the answer is not what the pipeline writes"
    if answer.outcome.startswith(case.expected):
        return ""
    return f"{answer.outcome[:200]!r}, where {case.expected!r} is right"


def _check_probe(server: Server, probe: Case, right: Mapping[int, str]) -> None:
    """Send the last request before the server's state is read, so that both states have the same leftovers."""
    wrong = wrong_with(probe, server.ask(probe), right)
    if wrong:
        raise RuntimeError(f"the server does not do what the first request asks for: {wrong}")


def _drive(
    server: Server,
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
            start = time.perf_counter()
            answer = server.ask(case)
            seconds, wrong = time.perf_counter() - start, wrong_with(case, answer, right)
            with lock:
                record = Record(case=case, answer=answer, seconds=seconds, memory=server.memory(), wrong=wrong)
                report.records.append(record)
                on_done()

    with ThreadPoolExecutor(num_clients) as clients:
        tasks = [clients.submit(client) for _ in range(num_clients)]
        try:
            for task in tasks:
                task.result()
        finally:
            is_over.set()  # After Ctrl-C, requests under way end, and no more are sent.


def _num_silent(report: Report) -> int:
    return sum(record.answer.is_silent for record in report.records)


def _quiet_state(server: Server, *earlier: State) -> State:
    """Return the server's state once it has cleaned up and stays so, or after some seconds."""
    deadline = time.monotonic() + QUIET_SECONDS
    state = server.state()
    while True:
        time.sleep(0.2)
        last, state = state, server.state()
        is_clean = state.files == last.files and all(
            state.files == other.files and state.num_fds <= other.num_fds and state.num_processes <= other.num_processes
            for other in earlier
        )
        if is_clean or time.monotonic() > deadline:
            return state

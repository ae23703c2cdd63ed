"""The verdict of the soak on a stand-in for a server that does one thing wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from benchmarks.soak.drive import soak
from benchmarks.soak.mix import Case, Fault, Raw, Request, mix
from benchmarks.soak.report import Report
from benchmarks.soak.right import digest_of
from benchmarks.soak.server import Answer, State

pytestmark = pytest.mark.slow

SPLATS = [b"a splat", b"another splat"]
RIGHT = {number: digest_of("ply", content) for number, content in enumerate(SPLATS)}
GOOD = [Request(image=b"", depth=b"", options={}, output="splat") for _ in SPLATS]
FAULTS = [
    Fault(name=name, request=Raw(body=b"", content_type=""), expected=f"422 {name}") for name in ("image", "depth")
]


class FakeServer:
    """Does everything right except what a test changes.

    Attributes:
        bytes_a_request: Number of bytes that each request leaks.
        left: Changes of its state after a hundred requests.
    """

    name, moments = "fake", ("early", "late")

    def __init__(self, change: Callable[[int, Case, Answer], Answer] = lambda number, case, answer: answer) -> None:
        self.bytes_a_request = 0
        self.left: dict[str, object] = {}
        self._change = change
        self._number, self._lock = 0, threading.Lock()

    def faults(self) -> list[Fault]:
        return FAULTS

    def ask(self, case: Case) -> Answer:
        with self._lock:
            self._number += 1
        answer = Answer(outcome=case.expected)
        if case.kind == "good":
            assert case.recipe is not None
            answer = replace(answer, digest=digest_of("ply", SPLATS[case.recipe]))
        return self._change(self._number, case, answer)

    def memory(self) -> int:
        return 10**9 + self._number * self.bytes_a_request

    def state(self) -> State:
        state = State(num_fds=10, num_threads=5, num_processes=2, num_zombies=0, files={"tmp/last.ply": 7})
        return replace(state, **self.left) if self._number > 110 else state  # type: ignore[arg-type]

    def complaints(self, cases: Sequence[Case]) -> list[str]:
        return []


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.soak.drive.QUIET_SECONDS", 0.0)


def soaked(server: FakeServer, num_requests: int = 300, num_clients: int = 2) -> Report:
    cases = mix(GOOD, server.faults(), server.moments, num_requests=num_requests)
    return soak(server, cases, RIGHT, num_clients=num_clients)


def test_a_server_that_does_everything_right_passes() -> None:
    report = soaked(FakeServer())
    assert (report.wrongs(), report.grown(), report.growth) == ([], [], 0.0)
    outcomes = {name: row["requests"] for name, row in report.outcomes().items()}
    assert outcomes == {"good": 240, "bad": 30, "cancelled": 30}
    assert "wrong: nothing" in report.table()
    assert json.loads(json.dumps(report.as_json()))["wrong"] == []


def changed(kind: str, answer: Answer) -> Callable[[int, Case, Answer], Answer]:
    """Return a change that gives one request of a kind, in the middle, another answer."""
    is_done = False

    def change(number: int, case: Case, right: Answer) -> Answer:
        nonlocal is_done
        if number < 150 or case.kind != kind or is_done:
            return right
        is_done = True
        return answer

    return change


@pytest.mark.parametrize(
    ("kind", "answer", "message"),
    [
        ("good", Answer(outcome="ok", digest=digest_of("ply", b"a splat.")), "not what the pipeline writes"),
        ("good", Answer(outcome="500 internal_error"), "'500 internal_error', where 'ok' is right"),
        ("good", Answer(outcome="cancelled"), "'cancelled', where 'ok' is right"),
        ("bad", Answer(outcome="ok", digest=RIGHT[0]), "'ok', where '422 "),
        ("bad", Answer(outcome="422 invalid_other"), "'422 invalid_other', where '422 "),
        ("bad", Answer(outcome="500 image"), "'500 image', where '422 "),
        ("cancelled", Answer(outcome="failed internal_error"), "where 'cancelled' is right"),
        ("cancelled", Answer(outcome="ok", digest=digest_of("ply", b"half a splat")), "not what the pipeline writes"),
    ],
)
def test_one_wrong_answer_of_three_hundred_is_found(kind: str, answer: Answer, message: str) -> None:
    report = soaked(FakeServer(changed(kind, answer)))
    (wrong,) = report.wrongs()
    assert wrong.startswith(f"{kind} ")
    assert message in wrong
    assert report.outcomes()["wrong"]["requests"] == 1


@pytest.mark.parametrize(
    ("left", "message"),
    [
        ({"files": {"tmp/last.ply": 7, "tmp/x.ply": 66}}, "the file tmp/x.ply of 66 bytes is left"),
        ({"files": {"tmp/last.ply": 8}}, "the file tmp/last.ply had 7 bytes, and has 8"),
        ({"files": {}}, "the file tmp/last.ply is gone"),
        ({"num_fds": 15}, "num_fds was 10 after the warm-up, and is 15"),
        ({"num_threads": 50}, "num_threads was 5 after the warm-up, and is 50"),
        ({"num_processes": 3}, "num_processes was 2 after the warm-up, and is 3"),
        ({"num_zombies": 1}, "1 children have ended and were not waited for"),
    ],
)
def test_leftovers_are_found(left: dict[str, object], message: str) -> None:
    server = FakeServer()
    server.left = left
    assert soaked(server).wrongs() == [message]


def test_a_server_that_grows_is_found() -> None:
    server = FakeServer()
    server.bytes_a_request = 10**6  # Of a gigabyte: 14 % between the medians of two blocks, 150 requests apart.
    report = soaked(server)
    assert report.growth == pytest.approx(0.15 / 1.125, rel=0.02)
    (grown,) = report.grown()
    assert "memory has grown by 13" in grown
    assert grown in report.table()
    assert report.as_json()["wrong"] == [grown]


def test_a_server_that_hangs_ends_the_soak_and_fails_it() -> None:
    def hang(number: int, case: Case, right: Answer) -> Answer:
        return Answer(outcome="no answer in 120 s", is_silent=True) if number > 50 else right

    report = soaked(FakeServer(hang), num_clients=1)
    wrongs = report.wrongs()
    assert sum("no answer in 120 s" in wrong for wrong in wrongs) == 2
    assert "only 51 of 300 requests were sent and answered" in wrongs
    assert "the server's state after the requests is unknown" in wrongs

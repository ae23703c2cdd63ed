"""The soak notices what must not be: fed with a server that is none, which does one thing wrong."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from benchmarks.soak.door import Answer, State, complaints_in
from benchmarks.soak.drive import soak
from benchmarks.soak.mix import Case, Fault, Raw, Request, mix
from benchmarks.soak.report import Report
from benchmarks.soak.right import digest_of

SPLATS = [b"a splat", b"another splat"]
RIGHT = {number: digest_of("ply", content) for number, content in enumerate(SPLATS)}
GOOD = [Request(image=b"", depth=b"", options={}, output="splat") for _ in SPLATS]
FAULTS = [
    Fault(name=name, request=Raw(body=b"", content_type=""), expected=f"422 {name}") for name in ("image", "depth")
]


class FakeServer:
    """Does everything right, but for what a test changes.

    Attributes:
        bytes_a_request: That it does not give back.
        left: What its state is after a hundred requests, beside what it was.
        told: What it complains of.
    """

    name, moments = "fake", ("early", "late")

    def __init__(self, change: Callable[[int, Case, Answer], Answer] = lambda number, case, answer: answer) -> None:
        self.bytes_a_request = 0
        self.left: dict[str, object] = {}
        self.told: list[str] = []
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
        return self.told


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.soak.drive.QUIET_SECONDS", 0.0)


def soaked(server: FakeServer, num_requests: int = 300, num_clients: int = 2) -> Report:
    cases = mix(GOOD, server.faults(), server.moments, num_requests=num_requests)
    return soak(server, cases, RIGHT, num_clients=num_clients)


def test_a_server_that_does_all_right_passes() -> None:
    report = soaked(FakeServer())
    assert (report.wrongs(), report.grown(), report.growth) == ([], [], 0.0)
    outcomes = {name: row["requests"] for name, row in report.outcomes().items()}
    assert outcomes == {"good": 240, "bad": 30, "cancelled": 30}
    assert "wrong: nothing" in report.table()
    assert json.loads(json.dumps(report.as_json()))["wrong"] == []


def changed(kind: str, answer: Answer) -> Callable[[int, Case, Answer], Answer]:
    """Answers one request of a kind, in the middle, in another way."""
    is_done = False

    def change(number: int, case: Case, right: Answer) -> Answer:
        nonlocal is_done
        if number < 150 or case.kind != kind or is_done:
            return right
        is_done = True
        return answer

    return change


@pytest.mark.parametrize(
    ("kind", "answer", "told"),
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
def test_one_wrong_answer_of_three_hundred_is_found(kind: str, answer: Answer, told: str) -> None:
    report = soaked(FakeServer(changed(kind, answer)))
    (wrong,) = report.wrongs()
    assert wrong.startswith(f"{kind} ")
    assert told in wrong
    assert report.outcomes()["wrong"]["requests"] == 1


def test_a_cancelling_that_comes_too_late_must_have_the_right_answer_and_is_counted_apart() -> None:
    def late(number: int, case: Case, right: Answer) -> Answer:
        if case.kind != "cancelled" or case.recipe is None:
            return right
        return Answer(outcome="ok", digest=RIGHT[case.recipe])

    report = soaked(FakeServer(late))
    assert report.wrongs() == []
    assert report.outcomes()["too late to cancel"]["requests"] == 30
    assert "cancelled" not in report.outcomes()


@pytest.mark.parametrize(
    ("left", "told"),
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
def test_what_is_left_behind_is_found(left: dict[str, object], told: str) -> None:
    server = FakeServer()
    server.left = left
    assert soaked(server).wrongs() == [told]


def test_a_server_that_grows_is_found() -> None:
    server = FakeServer()
    server.bytes_a_request = 10**6  # Of a gigabyte: 14 % from the middle of one block to that of another, 150 later.
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
    assert "what the server has left behind was not seen" in wrongs


def test_what_the_server_complains_of_counts() -> None:
    server = FakeServer()
    server.told = complaints_in("all is well\nTraceback (most recent call last):\nnot so well")
    assert soaked(server).wrongs() == ["the log says: Traceback (most recent call last):"]


def test_a_soak_that_is_stopped_tells_what_it_has_seen_and_does_not_pass() -> None:
    server, num_done = FakeServer(), 0

    def stop() -> None:
        nonlocal num_done
        num_done += 1
        if num_done == 30:
            raise KeyboardInterrupt

    cases = mix(GOOD, server.faults(), server.moments, num_requests=300)
    report = soak(server, cases, RIGHT, num_clients=1, on_done=stop)
    assert report.is_stopped
    assert len(report.records) == 30
    assert "only 30 of 300 requests were sent and answered" in report.wrongs()
    assert "30 of 300 requests" in report.table()


def test_a_server_that_answers_nothing_right_is_not_soaked() -> None:
    with pytest.raises(RuntimeError, match="does not do what the first request asks for"):
        soaked(FakeServer(lambda number, case, answer: Answer(outcome="ok")))


def test_the_mix_is_the_same_for_a_seed_and_each_block_has_the_same_good_requests() -> None:
    cases, again, other = (mix(GOOD, FAULTS, ("early", "late"), num_requests=1000, seed=seed) for seed in (1, 1, 2))
    assert cases == again
    assert cases != other
    assert Counter(case.kind for case in cases) == {"good": 800, "bad": 100, "cancelled": 100}
    blocks = [Counter(case.recipe for case in cases[at : at + 50] if case.kind == "good") for at in range(0, 1000, 50)]
    assert all(block == blocks[0] for block in blocks)
    assert {case.name for case in cases if case.kind == "bad"} == {"image", "depth"}
    assert {case.name for case in cases if case.kind == "cancelled"} == {"early", "late"}


def test_arrays_are_compared_but_for_their_timings() -> None:
    def as_json(position: float, seconds: float) -> bytes:
        about = {"timings": {"network": seconds}, "num_gaussians": 1}
        return json.dumps({"positions": [[position]], "metadata": about}).encode()

    def as_npz(position: bytes, seconds: float) -> bytes:
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr("positions.npy", position)
            archive.writestr("metadata.json", json.dumps({"timings": {"network": seconds}, "num_gaussians": 1}))
        return content.getvalue()

    assert digest_of("json", as_json(1.5, 0.1)) == digest_of("json", as_json(1.5, 0.2))
    assert digest_of("json", as_json(1.5, 0.1)) != digest_of("json", as_json(1.25, 0.1))
    assert digest_of("npz", as_npz(b"a", 0.1)) == digest_of("npz", as_npz(b"a", 0.2))
    assert digest_of("npz", as_npz(b"a", 0.1)) != digest_of("npz", as_npz(b"b", 0.1))

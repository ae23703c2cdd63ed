"""One attack on one server: good requests beside it, and what it costs the server."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks.attack.sockets import Client, attacking
from benchmarks.attack.target import Target

RECOVERY_SECONDS = 120.0
"""Maximum number of seconds that a server gets to recover."""
_SPARE_BYTES = 20_000_000
"""Bytes by which memory that has recovered may exceed the memory before."""


@dataclass(frozen=True, kw_only=True)
class Attack:
    """An attack.

    Attributes:
        name: Name in the report.
        clients: Its clients.
        seconds: Seconds that it lasts.
        quiet_s: Seconds from its beginning to the first good request.
    """

    name: str
    clients: list[Client]
    seconds: float
    quiet_s: float = 1.0


@dataclass(kw_only=True)
class Result:
    """Figures of an attack.

    Attributes:
        name: Name of the attack.
        usual_s: Seconds of good requests before the attack.
        good_s: Seconds of good requests during the attack.
        wrong: What was wrong with the other answers to good requests.
        attackers: Ends of the attack's own requests, with their numbers.
        memory_before: Bytes of the server's memory before the attack.
        memory_most: Most bytes during the attack.
        disk_most: Most bytes of temporary files during the attack.
        fds_most: Most open descriptors.
        recovery_s: Seconds from the end of the attack until memory, disk and the answers are as before; None if they
            are not.
    """

    name: str
    usual_s: list[float] = field(default_factory=list)
    good_s: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    attackers: dict[str, int] = field(default_factory=dict)
    memory_before: int = 0
    memory_most: int = 0
    disk_most: int = 0
    fds_most: int = 0
    recovery_s: float | None = None

    def row(self) -> list[str]:
        """Return the cells of a table."""
        asked = len(self.good_s) + len(self.wrong)
        ends = ", ".join(f"{number} {end}" for end, number in sorted(self.attackers.items()))
        return [
            self.name,
            f"{len(self.good_s)} of {asked}",
            f"{statistics.median(self.usual_s):.2f}",
            f"{statistics.median(self.good_s):.2f}, {max(self.good_s):.2f}" if self.good_s else "-",
            f"{self.memory_before / 1e6:.0f}, {self.memory_most / 1e6:.0f}",
            f"{self.disk_most / 1e6:.0f}",
            str(self.fds_most),
            "not" if self.recovery_s is None else f"{self.recovery_s:.1f}",
            ends,
        ]


HEADER = (
    "attack",
    "good requests answered",
    "usual s",
    "during: median, most s",
    "memory MB before, at most",
    "disk MB at most",
    "descriptors",
    "recovered after s",
    "ends of the attackers' requests",
)


def measure(target: Target, attack: Attack) -> Result:
    """Run an attack, with one good request after another beside it, and wait until the server has recovered."""
    result = Result(name=attack.name, memory_before=target.memory())
    result.usual_s = [_ask(target, result) for _ in range(3)]
    with _watched(target, result):
        with attacking(attack.clients) as outcomes:
            end = time.monotonic() + attack.seconds
            time.sleep(attack.quiet_s)
            while time.monotonic() < end:
                seconds = _ask(target, result, is_attacked=True)
                time.sleep(max(0.05, min(0.5, seconds)))
        result.attackers = dict(outcomes.counts)
        result.recovery_s = _recovery(target, result)
    return result


def _ask(target: Target, result: Result, *, is_attacked: bool = False) -> float:
    start = time.monotonic()
    answer = target.ask()
    seconds = time.monotonic() - start
    if answer != "right":
        result.wrong.append(answer)
    elif is_attacked:
        result.good_s.append(seconds)
    return seconds


def _recovery(target: Target, result: Result) -> float | None:
    start = time.monotonic()
    while time.monotonic() < start + RECOVERY_SECONDS:
        answer = target.ask()
        seconds = time.monotonic() - start
        is_small = target.disk() < 1_000_000 and target.memory() < 1.2 * result.memory_before + _SPARE_BYTES
        if answer == "right" and is_small:
            return seconds
        time.sleep(0.2)
    return None


@contextmanager
def _watched(target: Target, result: Result) -> Iterator[None]:
    """Record the maxima of memory, disk and descriptors in the block."""
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.05):
            result.memory_most = max(result.memory_most, target.memory())
            result.disk_most = max(result.disk_most, target.disk())
            result.fds_most = max(result.fds_most, target.num_fds())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(30)

"""The report of a soak, for people and for programs, with everything that is wrong."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.soak.mix import BLOCK, Case
from benchmarks.soak.server import Answer, State

WARM_UP = 100
"""Number of requests after which a server has seen everything once, so that its memory hardly grows any more."""
MAX_GROWTH = 0.05
"""Largest growth of the memory after the warm-up, as a share of it."""
POOLED_FDS = 4
"""Number of descriptors that may be added after the warm-up, since clients keep connections for a while."""
POOLED_THREADS = 8
"""Number of threads that may be added after the warm-up, since a pool starts one only when all others are busy."""
SHOWN = 20
"""Number of wrong answers that the table lists."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One finished request of the mix.

    Attributes:
        case: The request.
        answer: Its result.
        seconds: Seconds from the first byte sent to the verdict.
        memory: Bytes of the server's memory afterwards.
        wrong: What is wrong with the answer, or an empty text.
    """

    case: Case
    answer: Answer
    seconds: float
    memory: int
    wrong: str


@dataclass(kw_only=True)
class Report:
    """The report of a soak.

    Attributes:
        server: Name of the server.
        num_clients: Number of clients at once.
        num_requests: Number of requests in the mix.
        records: Finished requests, in the order in which they ended.
        total_s: Seconds from the first request to the last.
        memory_at_start: Bytes of the server's memory before the first request.
        before: The server's state after one good request, before the mix.
        warm: Its state after the first `WARM_UP` requests of the mix, or after half of a short mix.
        after: Its state after the mix and the same good request again; None if the soak ended before.
        complaints: Errors that the server itself reports.
        is_stopped: Whether Ctrl-C ended the soak.
    """

    server: str
    num_clients: int
    num_requests: int
    records: list[Record] = field(default_factory=list)
    total_s: float = 0.0
    memory_at_start: int = 0
    before: State | None = None
    warm: State | None = None
    after: State | None = None
    complaints: list[str] = field(default_factory=list)
    is_stopped: bool = False

    @property
    def window_medians(self) -> tuple[float, float] | None:
        """Median memory of the block after the warm-up and of the last block; None if these are not two blocks.

        Blocks have the same requests. Single samples would contain the memory of requests under way.
        """
        memory = [record.memory for record in self.records]
        if len(memory) < WARM_UP + 2 * BLOCK:
            return None
        return statistics.median(memory[WARM_UP : WARM_UP + BLOCK]), statistics.median(memory[-BLOCK:])

    @property
    def growth(self) -> float | None:
        """Growth of the memory after the warm-up, as a share of it."""
        if self.window_medians is None:
            return None
        first, last = self.window_medians
        return last / first - 1

    def wrongs(self) -> list[str]:
        """Return everything that is wrong, except the growth."""
        found = [f"{record.case.kind} {record.case.name}: {record.wrong}" for record in self.records if record.wrong]
        if len(self.records) < self.num_requests:
            found.append(f"only {len(self.records)} of {self.num_requests} requests were sent and answered")
        return found + self._left_behind() + self.complaints

    def _left_behind(self) -> list[str]:
        if self.before is None or self.warm is None or self.after is None:
            return ["the server's state after the requests is unknown"]
        found = []
        for name in sorted(self.before.files.keys() | self.after.files.keys()):
            old, new = self.before.files.get(name), self.after.files.get(name)
            if old is None:
                found.append(f"the file {name} of {new} bytes is left")
            elif new is None:
                found.append(f"the file {name} is gone")
            elif new != old:
                found.append(f"the file {name} had {old} bytes, and has {new}")
        for what, more in (("num_fds", POOLED_FDS), ("num_threads", POOLED_THREADS), ("num_processes", 0)):
            first, last = getattr(self.warm, what), getattr(self.after, what)
            if last > first + more:
                found.append(f"{what} was {first} after the warm-up, and is {last}")
        if self.after.num_zombies:
            found.append(f"{self.after.num_zombies} children have ended and were not waited for")
        return found

    def grown(self) -> list[str]:
        """Return the growth, if it is too large."""
        if self.growth is None or self.growth <= MAX_GROWTH:
            return []
        return [
            f"memory has grown by {self.growth:.1%} since the first {WARM_UP} requests, the limit is {MAX_GROWTH:.0%}"
        ]

    def outcomes(self) -> dict[str, dict[str, float]]:
        """Return the number of requests and their median, 99 % and longest seconds, by outcome."""
        by_outcome: dict[str, list[float]] = {}
        for record in self.records:
            came = "too late to cancel" if record.answer.outcome == "ok" else "cancelled"
            name = {"good": "good", "bad": "bad", "cancelled": came}[record.case.kind]
            by_outcome.setdefault("wrong" if record.wrong else name, []).append(record.seconds)
        table = {}
        for name, seconds in sorted(by_outcome.items()):
            p50, p99, most = np.quantile(seconds, (0.5, 0.99, 1.0))
            table[name] = {"requests": len(seconds), "p50_s": float(p50), "p99_s": float(p99), "max_s": float(most)}
        return table

    def as_json(self) -> dict[str, Any]:
        """All figures."""
        memory = [record.memory for record in self.records]
        states = {"before": self.before, "warm": self.warm, "after": self.after}
        return {
            "server": self.server,
            "clients": self.num_clients,
            "total_s": self.total_s,
            "requests_a_second": len(self.records) / self.total_s if self.total_s else 0.0,
            "outcomes": self.outcomes(),
            "kinds": dict(Counter(f"{record.case.kind}: {record.case.name}" for record in self.records)),
            "memory_bytes": {"start": self.memory_at_start, "after_each": memory},
            "growth": self.growth,
            "states": {name: state and vars(state) for name, state in states.items()},
            "wrong": self.wrongs() + self.grown(),
        }

    def table(self) -> str:
        """Return the report for people."""
        lines = [
            f"{self.server}: {len(self.records)} of {self.num_requests} requests from {self.num_clients} clients in "
            f"{self.total_s:.0f} s: {len(self.records) / max(self.total_s, 1e-9):.2f} a second",
            f"  {'outcome':20} {'requests':>8} {'p50 s':>8} {'p99 s':>8} {'max s':>8}",
        ]
        lines += [
            f"  {name:20} {row['requests']:8.0f} {row['p50_s']:8.3f} {row['p99_s']:8.3f} {row['max_s']:8.3f}"
            for name, row in self.outcomes().items()
        ]
        if self.records:
            peak = max(record.memory for record in self.records)
            line = f"  memory MB: {self.memory_at_start / 1e6:.0f} at the start, {peak / 1e6:.0f} at most"
            if self.window_medians is not None and self.growth is not None:
                first, last = self.window_medians
                line += f", medians {first / 1e6:.0f} after {WARM_UP} requests and {last / 1e6:.0f} at the end: "
                line += f"{self.growth:+.1%}"
            lines.append(line)
        if self.before and self.warm and self.after:
            for what in ("num_fds", "num_threads", "num_processes"):
                numbers = [getattr(state, what) for state in (self.before, self.warm, self.after)]
                lines.append(f"  {what}: {numbers[0]} at the start, {numbers[1]} warm, {numbers[2]} at the end")
            lines.append(f"  files: {len(self.before.files)} before, {len(self.after.files)} after")
        wrong = self.wrongs() + self.grown()
        lines.append(f"  wrong: {len(wrong) or 'nothing'}")
        lines += [f"    {line}" for line in wrong[:SHOWN]]
        if len(wrong) > SHOWN:
            lines.append(f"    and {len(wrong) - SHOWN} more")
        return "\n".join(lines)

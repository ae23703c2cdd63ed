"""The display of a run: a live view on a terminal, lines in a log, and the table of `sharp-cog dataset status`."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.logging import RichHandler
from rich.table import Table

from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.run import Run
from sharp_cog.text import plain

_LOG = logging.getLogger(__name__)

LINE_S = 30.0
"""Seconds between log lines where there is no terminal."""
RATE_S = 900.0
"""Seconds of work that the time left is estimated from, so that a slow start is forgotten."""

_MAX_ASSUMPTIONS = 5
"""Number of assumptions that `status` names, the most frequent first."""

_STATES = {
    "done": "done",
    "made": "made, to be published",
    "fetched": "fetched, to be made",
    "seen": "to be fetched",
    "failed": "given up",
    "taken": "leased by other clients",
    "others": "done by other clients",
}


class Figures:
    """The figures of a run under way."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._past: list[tuple[float, int]] = []

    def now(self) -> dict[str, str]:
        """Return the figures by name."""
        run = self._run
        counts = run.journal.counts()
        num_done, num_failed = counts.get("done", 0), counts.get("failed", 0)
        num_others = counts.get("others", 0) + counts.get("taken", 0)
        per_hour = self._per_hour(num_done)
        figures = {"done": str(num_done), "failed": str(num_failed), "an hour": f"{per_hour:.0f}"}
        left = self._num_left(num_done, num_done + num_failed + num_others)
        if left is not None and per_hour:
            figures["time left"] = duration(left / per_hour * 3600)
        if num_others:
            figures["other clients'"] = str(num_others)
        figures["waiting"] = ", ".join(f"{number} {name}" for name, number in run.queue_sizes.items())
        rate_limit_left = getattr(run.source, "rate_limit_left", None)  # A folder has no limit.
        if rate_limit_left is not None:
            figures["rate limit"] = f"{rate_limit_left} requests left this hour"
        if run.is_paused:
            figures["paused"] = f"delete the file {run.settings.pause_file} to continue"
        return figures

    def _per_hour(self, num_done: int) -> float:
        now = time.monotonic()
        self._past.append((now, num_done))
        # The first point goes only once the second is old enough, so that the window never becomes too short.
        while len(self._past) > 2 and now - self._past[1][0] > RATE_S:
            del self._past[0]
        since, num_then = self._past[0]
        return (num_done - num_then) / max(1.0, now - since) * 3600

    def _num_left(self, num_done: int, num_decided: int) -> int | None:
        # MAX_IMAGES counts splats. The source counts photographs, of which some fail or belong to others.
        limits = []
        if self._run.settings.max_images:
            limits.append(self._run.settings.max_images - num_done)
        if self._run.source.num_photos is not None:
            limits.append(self._run.source.num_photos - num_decided)
        return max(0, min(limits)) if limits else None


def duration(seconds: float) -> str:
    """Return a duration for people: `3 d 4 h`, `2 h 5 min`, `4 min`, `50 s`."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    if whole < 172_800:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


@contextmanager
def show(run: Run) -> Iterator[None]:
    """Display a run during the block: live on a terminal, as log lines elsewhere."""
    with _live(run) if sys.stderr.isatty() else _logged(run):
        yield


@contextmanager
def _live(run: Run) -> Iterator[None]:
    figures, console = Figures(run), Console(stderr=True)
    # Log lines appear above the view; printed directly, they would garble it.
    logger = logging.getLogger("sharp_cog")
    before = logger.handlers[:]
    logger.handlers[:] = [RichHandler(console=console, show_time=False, show_level=False, show_path=False)]

    def table() -> Table:
        rows = Table(title=str(run.settings.run_dir), show_header=False, box=None, title_justify="left")
        for name, value in figures.now().items():
            rows.add_row(name, value)
        return rows

    try:
        with Live(console=console, refresh_per_second=2, get_renderable=table):
            yield
    finally:
        logger.handlers[:] = before


@contextmanager
def _logged(run: Run) -> Iterator[None]:
    figures, is_over = Figures(run), threading.Event()

    def log_line() -> None:
        _LOG.info("%s", "; ".join(f"{name}: {value}" for name, value in figures.now().items()))

    def log() -> None:
        while not is_over.wait(LINE_S):
            log_line()

    figures.now()  # The rate is counted from here.
    thread = threading.Thread(target=log, daemon=True, name="progress")
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        log_line()


def status(journal: Journal) -> str:
    """Return the state of a run as text, from its journal."""
    counts = journal.counts()
    lines = [f"{name:<25}{counts.get(state, 0):>8}" for state, name in _STATES.items()]
    last = journal.last_done()
    if last is not None:
        lines.append(f"{'last one done':<25}{duration(time.time() - last):>8} ago")
    failed = [f"  {entry.photo.id}: {entry.error}" for entry in journal.entries("failed")]
    lines += failed[:10]
    if len(failed) > 10:
        lines.append(f"  and {len(failed) - 10} more")
    assumed = journal.assumptions(limit=_MAX_ASSUMPTIONS)
    lines += [f"  assumed for {number}: {plain(assumption, 200)}" for assumption, number in assumed.items()]
    return "\n".join(lines)

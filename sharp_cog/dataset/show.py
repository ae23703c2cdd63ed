"""How a run is shown: a live view on a terminal, lines in a log, a table for `dataset status`."""

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

_LOG = logging.getLogger(__name__)

LINE_SECONDS = 30.0
"""How often a line is logged where there is no terminal."""
RATE_SECONDS = 900.0
"""The time left is told by how it went so long, so that a slow beginning does not count for ever."""


class Figures:
    """What there is to tell of a run under way."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._past: list[tuple[float, int]] = []

    def now(self) -> dict[str, str]:
        """The figures by name."""
        run = self._run
        counts, progress = run.journal.counts(), run.progress
        num_done, num_failed = counts.get("done", 0), counts.get("failed", 0)
        num_others = counts.get("others", 0) + counts.get("taken", 0)
        per_hour = self._per_hour(num_done)
        told = {"done": str(num_done), "failed": str(num_failed), "an hour": f"{per_hour:.0f}"}
        left = self._num_left(num_done, num_done + num_failed + num_others)
        if left is not None and per_hour:
            told["time left"] = duration(left / per_hour * 3600)
        if num_others:
            told["other clients'"] = str(num_others)
        told["waiting"] = ", ".join(f"{number} {name}" for name, number in progress.waiting.items()) or "none"
        if progress.rate_limit_left is not None:
            told["rate limit"] = f"{progress.rate_limit_left} requests left this hour"
        if progress.is_paused:
            told["paused"] = f"until the file {run.settings.pause_file} is gone"
        return told

    def _per_hour(self, num_done: int) -> float:
        now = time.monotonic()
        self._past.append((now, num_done))
        while len(self._past) > 2 and now - self._past[1][0] > RATE_SECONDS:
            del self._past[0]
        since, num_then = self._past[0]
        return (num_done - num_then) / max(1.0, now - since) * 3600

    def _num_left(self, num_done: int, num_decided: int) -> int | None:
        ends = []
        if self._run.settings.max_images:
            ends.append(self._run.settings.max_images - num_done)
        if self._run.source.num_photos is not None:
            ends.append(self._run.source.num_photos - num_decided)
        return max(0, min(ends)) if ends else None


def duration(seconds: float) -> str:
    """For people: `3 d 4 h`, `2 h 5 min`, `4 min`, `50 s`."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    if whole < 172_800:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


@contextmanager
def shown(run: Run) -> Iterator[None]:
    """Shows a run while the block lasts."""
    with _live(run) if sys.stderr.isatty() else _logged(run):
        yield


@contextmanager
def _live(run: Run) -> Iterator[None]:
    figures, console = Figures(run), Console(stderr=True)
    # Log lines go above the view, which they would break otherwise.
    logger = logging.getLogger("sharp_cog")
    before = logger.handlers[:]
    logger.handlers[:] = [RichHandler(console=console, show_time=False, show_level=False, show_path=False)]
    try:
        with Live(console=console, refresh_per_second=2, get_renderable=lambda: _table(run, figures)):
            yield
    finally:
        logger.handlers[:] = before


@contextmanager
def _logged(run: Run) -> Iterator[None]:
    figures, is_over = Figures(run), threading.Event()

    def log() -> None:
        while not is_over.wait(LINE_SECONDS):
            _LOG.info("%s", _line(figures))

    figures.now()  # What later figures count from.
    thread = threading.Thread(target=log, daemon=True, name="progress")
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        _LOG.info("%s", _line(figures))


def _line(figures: Figures) -> str:
    return "; ".join(f"{name}: {value}" for name, value in figures.now().items())


def _table(run: Run, figures: Figures) -> Table:
    table = Table(title=str(run.settings.run_dir), show_header=False, box=None, title_justify="left")
    for name, value in figures.now().items():
        table.add_row(name, value)
    return table


_STATES = {
    "done": "done",
    "made": "made, to be published",
    "fetched": "fetched, to be made",
    "seen": "to be fetched",
    "failed": "given up",
    "taken": "at another client",
    "others": "done by others",
}


def status(journal: Journal) -> str:
    """What a journal says of its run, for people."""
    counts = journal.counts()
    lines = [f"{name:<22}{counts.get(state, 0):>8}" for state, name in _STATES.items()]
    last = journal.last_done()
    if last is not None:
        lines.append(f"{'the last one done':<22}{duration(time.time() - last):>8} ago")
    failed = [f"  {entry.photo.id}: {entry.error}" for entry in journal.entries("failed")]
    lines += failed[:10]
    if len(failed) > 10:
        lines.append(f"  and {len(failed) - 10} more")
    return "\n".join(lines)

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
from rich.table import Table

from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.run import Run

_LOG = logging.getLogger(__name__)

LINE_SECONDS = 30.0
"""How often a line is logged where there is no terminal."""


def figures(run: Run) -> dict[str, str]:
    """What there is to tell of a run under way, by name."""
    counts, progress = run.journal.counts(), run.progress
    hours = max(1e-6, (time.time() - progress.start) / 3600)
    num_done = run.journal.done_since(progress.start)
    per_hour = num_done / hours
    told = {
        "done": f"{counts.get('done', 0)} ({num_done} in this run, {per_hour:.0f} an hour)",
        "failed": str(counts.get("failed", 0)),
        "others'": str(progress.num_elsewhere),
        "looked at": str(progress.num_scanned),
        "waiting": ", ".join(f"{number} {name}" for name, number in progress.waiting.items()) or "none",
    }
    wanted = run.settings.max_images
    if wanted and per_hour:
        told["time left"] = f"{max(0, wanted - num_done) / per_hour * 60:.0f} min"
    if progress.rate_limit_left is not None:
        told["rate limit"] = f"{progress.rate_limit_left} left this hour"
    if progress.is_paused:
        told["paused"] = f"by the file {run.settings.pause_file}"
    return told


@contextmanager
def shown(run: Run) -> Iterator[None]:
    """Shows a run while the block lasts."""
    if sys.stderr.isatty():
        console = Console(stderr=True)
        with Live(console=console, refresh_per_second=2, get_renderable=lambda: _table(run)):
            yield
        return
    is_over = threading.Event()

    def log() -> None:
        while not is_over.wait(LINE_SECONDS):
            _LOG.info("%s", _line(run))

    thread = threading.Thread(target=log, daemon=True, name="progress")
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        _LOG.info("%s", _line(run))


def _line(run: Run) -> str:
    return "; ".join(f"{name} {value}" for name, value in figures(run).items())


def _table(run: Run) -> Table:
    table = Table(title=str(run.settings.run_dir), show_header=False, box=None)
    for name, value in figures(run).items():
        table.add_row(name, value)
    return table


def status(journal: Journal) -> str:
    """What a journal says of its run, for people."""
    counts = journal.counts()
    lines = [f"{name:<8} {counts.get(name, 0)}" for name in ("done", "made", "fetched", "seen", "failed")]
    failed = list(journal.entries("failed"))
    lines += [f"  {entry.photo.id}: {entry.error}" for entry in failed[:10]]
    if len(failed) > 10:
        lines.append(f"  and {len(failed) - 10} more")
    return "\n".join(lines)

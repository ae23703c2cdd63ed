"""`sharp-cog dataset run` and `status`: a stream of photographs into a dataset of splats."""

from __future__ import annotations

import argparse
import logging
import signal
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from sharp_cog.cli import EXIT_INTERRUPTED
from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.settings import UNUSED_VARIABLES, DatasetSettings
from sharp_cog.errors import NotInstalledError, SettingError
from sharp_cog.serving.settings import Settings, process_environment

_LOG = logging.getLogger(__name__)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; see `sharp_cog.cli.main` for the exit code."""
    try:
        from dotenv import dotenv_values

        from sharp_cog.dataset.show import status
    except ModuleNotFoundError as error:
        raise NotInstalledError(f"datasets need {error.name}: .venv/bin/pip install -e '.[dataset]'") from error
    environment = process_environment()
    settings = DatasetSettings.build(environment, dotenv_values(".env"), arguments)
    if arguments.action == "status":
        print(status(_journal(settings, must_exist=True)))
        return 0
    for name in UNUSED_VARIABLES:
        if environment.get(name):
            _LOG.warning("%s is set, but not needed: the model runs in this process", name)
    return _run(settings)


def _run(settings: DatasetSettings) -> int:
    from sharp_cog.dataset.build import build
    from sharp_cog.dataset.show import shown

    settings.run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(settings.run_dir / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise SettingError(
            f"RUN_ID is {settings.run_id!r}, which another process is working on: choose another, or wait for it"
        ) from None
    with lock:
        journal = _journal(settings)
        if not journal.fact("owner"):
            journal.set_fact("owner", uuid.uuid4().hex)
        sharp = Settings.from_environment()
        device = "auto" if settings.device == "default" else settings.device
        work = build(settings, journal, replace(sharp, device=device))
        with _stopping_gently(work.stop) as was_stopped, shown(work):
            work.work()
        journal.close()
    return EXIT_INTERRUPTED if was_stopped else 0


@contextmanager
def _stopping_gently(stop: object) -> Iterator[list[int]]:
    """The first Ctrl-C or SIGTERM ends the run when what is under way is done, the second one at once."""
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        _LOG.warning("stopping: what is under way is finished; once more stops at once")
        assert callable(stop)
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _journal(settings: DatasetSettings, *, must_exist: bool = False) -> Journal:
    path: Path = settings.run_dir / "journal.sqlite"
    if must_exist and not path.exists():
        raise SettingError(f"there is no run {settings.run_dir}: check RUNS_DIR and RUN_ID")
    return Journal(path)

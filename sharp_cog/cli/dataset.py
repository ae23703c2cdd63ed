"""`sharp-cog dataset`: turn a stream of photographs into a dataset of splats, or report how far a run is."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from sharp_cog.cli import EXIT_FAILED, EXIT_INTERRUPTED
from sharp_cog.config.dataset import UNUSED_VARIABLES, DatasetSettings
from sharp_cog.config.settings import Settings, process_environment
from sharp_cog.errors import NotInstalledError, OutputError, SettingError

_LOG = logging.getLogger(__name__)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code, as `sharp_cog.cli.main` documents it."""
    try:
        from dotenv import dotenv_values

        # The hub's client reads the environment when it is imported, so .env must be read before.
        environment = process_environment(read_variables(".env", dotenv_values))
        import sharp_cog.dataset.build
        import sharp_cog.dataset.show  # noqa: F401
    except ModuleNotFoundError as error:
        raise NotInstalledError(f"datasets need {error.name}: .venv/bin/pip install -e '.[dataset]'") from error
    if arguments.action == "status":
        return _status(DatasetSettings.of_run(environment, arguments))
    settings = DatasetSettings.build(environment, arguments)
    for name in UNUSED_VARIABLES:
        if environment.get(name):
            _LOG.warning("%s is set, but not needed: the model is loaded once, in this process", name)
    # The model's settings read the same variable, and know `auto` but not `default`.
    device = "auto" if settings.device == "default" else settings.device
    return _run(settings, Settings.from_environment({**environment, "SHARP_DEVICE": device}))


def read_variables(path: str, read: Callable[[str], dict[str, str | None]]) -> dict[str, str | None]:
    """Return the variables of a `.env` file; none if the file does not exist.

    Args:
        path: The file.
        read: Function that parses it, such as `dotenv.dotenv_values`.

    Raises:
        SettingError: The file cannot be read, or is not UTF-8.
    """
    try:
        return read(path)
    except OSError as error:
        raise SettingError(f"{path} cannot be read: {error.strerror or error}: check its permissions") from error
    except UnicodeDecodeError as error:
        raise SettingError(f"{path} is not UTF-8 at byte {error.start}: save it as UTF-8") from error


def _status(settings: DatasetSettings) -> int:
    from sharp_cog.dataset.journal import Journal
    from sharp_cog.dataset.show import status

    path = settings.run_dir / "journal.sqlite"
    if not path.exists():
        raise SettingError(f"there is no run {settings.run_dir}: check RUNS_DIR and RUN_ID")
    journal = Journal(path)
    print(status(journal))
    journal.close()
    return 0


def _run(settings: DatasetSettings, sharp: Settings) -> int:
    from sharp_cog.dataset.build import build
    from sharp_cog.dataset.journal import Journal
    from sharp_cog.dataset.show import show

    try:
        settings.run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{settings.run_dir} cannot be created: {error.strerror or error}: check RUNS_DIR") from error
    lock = FileLock(settings.run_dir / ".lock")
    try:
        # Two processes would do everything twice. The system releases the lock however its process ends.
        lock.acquire(blocking=False)
    except Timeout:
        raise SettingError(
            f"RUN_ID is {settings.run_id!r}, which another process is working on: choose another, or wait for it"
        ) from None
    with lock:
        journal = Journal(settings.run_dir / "journal.sqlite")
        work = build(settings, journal, sharp)
        try:
            with _stop_on_signals(work.stop) as received, show(work):
                work.work()
        except KeyboardInterrupt:
            # Threads may wait for the network for minutes, so the process ends without them. Nothing is lost, because
            # every step is in the journal.
            print("stopped", file=sys.stderr, flush=True)
            os._exit(EXIT_INTERRUPTED)
        counts = journal.counts()
        journal.close()
    # Also if the run has done everything meanwhile, since a script must be able to see that it was stopped.
    if received:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if counts.get("failed") and not counts.get("done") else 0


@contextmanager
def _stop_on_signals(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Let the first Ctrl-C or SIGTERM finish the work in progress, and the second one stop at once.

    Args:
        stop: Function that ends the run once its work in progress is done.

    Yields:
        The signals received so far.
    """
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        _LOG.warning("stopping: work in progress is being finished; press Ctrl-C again to stop at once")
        stop()

    # Python calls the handler in the main thread, so that the second signal interrupts `work` there.
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

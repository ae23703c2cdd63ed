"""Checks of the predictor inside Cog's worker process: what coglet needs at the start, and the watchdog.

They are the only guard of an image whose port is coglet's own, as on Replicate.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import secrets
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from sharp_cog.config.settings import process_environment
from sharp_cog.errors import SettingError

TESTED = "0.23.1"
"""Version of coglet with which the guard, the watchdog and the report in docs/coglet-report.md were tested."""
PREDICTIONS = Path("/tmp/coglet/predictions")  # noqa: S108 - coglet has no setting for it
"""Folder in which coglet makes a folder for each prediction, and leaves it."""
GUARDED = "COG_GUARDED"
"""Environment variable that `sharp_cog.serving.cog_server` sets for coglet."""
_REPORT_SECONDS = 1.0
"""Time for coglet to read the reason for which the worker ends."""

_HEALTH_SECONDS = 10.0


def check_folder() -> None:
    """Check that coglet can make a folder for a prediction: it loses its slot with the first one that it cannot make.

    Raises:
        SettingError: The folder cannot be written.
    """
    probe = PREDICTIONS / f"sharp_cog-{secrets.token_hex(8)}"
    try:
        probe.mkdir(parents=True)
        probe.rmdir()
    except OSError as error:
        raise SettingError(
            f"Cog's server cannot write to {PREDICTIONS} ({error.strerror}), which may belong to another user: "
            "remove it, or make it writable"
        ) from error


def check_worker() -> str | None:
    """Check the process at its start.

    Returns:
        A warning for the log; None if there is nothing to say.

    Raises:
        SettingError: Coglet cannot work here.
    """
    check_folder()
    version = importlib.metadata.version("coglet")
    if version != TESTED:
        return f"coglet is {version}, but its faults were worked around in {TESTED}: see docs/replicate.md"
    if GUARDED not in process_environment():
        return "Cog's server has no guard here: only trusted programs may reach its port, see docs/replicate.md"
    return None


class Watchdog:
    """Thread that ends the worker if its server stays busy without a prediction, so that its health is UNHEALTHY.

    Coglet 0.23.1 loses its slot if it cannot make a folder, and hangs if a prediction is cancelled while its inputs are
    read. It would answer 409 for ever, and never ask the predictor for its health. Without a worker it is UNHEALTHY.
    """

    def __init__(self, limit_s: float, *, kill: Callable[[], object] | None = None) -> None:
        """Create the watchdog.

        Args:
            limit_s: Longest time for which the server may be busy without a prediction, in seconds.
            kill: Ends the worker; for tests.
        """
        port = process_environment().get("PORT", "5000")
        self._url = f"http://127.0.0.1:{port}/health-check"
        self._limit_s = limit_s
        self._kill = kill or (lambda: os._exit(1))
        self._is_predicting = False
        self._idle_since = time.monotonic()

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def begin(self) -> None:
        """Let the server be busy, as a prediction begins."""
        self._is_predicting = True

    def end(self) -> None:
        """Note that the prediction has ended."""
        self._idle_since = time.monotonic()
        self._is_predicting = False

    def _watch(self) -> None:
        while True:
            time.sleep(min(15.0, self._limit_s / 10))
            if not self._is_busy():
                self._idle_since = time.monotonic()
            elif not self._is_predicting and time.monotonic() - self._idle_since > self._limit_s:
                print(
                    f"the server has been busy for {self._limit_s:g} s without a prediction: ending the worker, after "
                    "which the health check says UNHEALTHY: restart the container",
                    file=sys.stderr,
                    flush=True,
                )
                # Coglet copies the worker's output to its log, and loses what is left when the worker ends.
                time.sleep(_REPORT_SECONDS)
                self._kill()
                return

    def _is_busy(self) -> bool:
        # Behind the guard, which has a watchdog of its own, coglet does not listen here.
        try:
            with urllib.request.urlopen(self._url, timeout=_HEALTH_SECONDS) as answer:  # noqa: S310
                return bool(json.load(answer)["status"] == "BUSY")
        except (OSError, ValueError, LookupError, TypeError):
            return False

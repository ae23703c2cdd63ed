"""The retry policy of every request that the project repeats: downloads, photo services and the hub."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")


class TransientError(Exception):
    """A failure that another try may not meet, such as a dropped connection or HTTP 503.

    Attempts raise it and `RetryPolicy.call` catches it. Users never see it: translate the one that ends a call into an
    error of `sharp_cog.errors`.

    Attributes:
        retry_after_s: Seconds to wait before the next try, where the server named them; else None.
        num_tries: Number of failed tries in a row, set by `RetryPolicy.call` when it gives up.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.num_tries = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryPolicy:
    """Exponential back-off with jitter.

    Attributes:
        max_tries: Number of failed tries in a row after which `call` gives up, including the first one.
        first_wait_s: Seconds to wait after the first failure.
        factor: Ratio of each wait to the one before.
        max_wait_s: Longest wait in seconds, before jitter.
        jitter: Largest relative deviation of a wait: 0.5 draws from half to one and a half times the wait, so that
            clients that failed together do not meet again. 0 makes the waits exact.
        max_retry_after_s: Longest wait that a server may ask for; `call` gives up where it asks for more.
    """

    max_tries: int
    first_wait_s: float
    factor: float = 2.0
    max_wait_s: float = 60.0
    jitter: float = 0.5
    max_retry_after_s: float = 60.0

    def call(
        self,
        attempt: Callable[[], _T],
        *,
        sleep: Callable[[float], object] = time.sleep,
        deadline: float | None = None,
        position: Callable[[], int] | None = None,
        on_retry: Callable[[TransientError, float], object] | None = None,
    ) -> _T:
        """Repeat an attempt until it returns, and return its result.

        Only `TransientError` is repeated; every other exception passes through, which is how an attempt ends the call.

        Args:
            attempt: Makes one try.
            sleep: Waits for a number of seconds. `Event.wait` makes waits that can be interrupted; the attempt must
                then raise something else than `TransientError` once the event is set.
            deadline: Time by `time.monotonic` at which no try may start any more; None means no limit.
            position: Returns the progress of the attempts, such as the bytes received. A failed try after which it has
                grown is counted as the first one again. None counts every failed try.
            on_retry: Receives the error and the seconds to wait, before each wait; meant for the log.

        Raises:
            TransientError: The error of the last try, with `num_tries` set.
        """
        num_failures, last_position = 0, position() if position else 0
        while True:
            try:
                return attempt()
            except TransientError as error:
                # A download that is cut again and again still completes, as long as each try brings it forward.
                if position and position() > last_position:
                    num_failures, last_position = 0, position()
                num_failures += 1
                # A server that names a time knows better, and its wait gets no jitter.
                wait_s = self._wait_s(num_failures) if error.retry_after_s is None else error.retry_after_s
                if (
                    num_failures >= self.max_tries
                    or (error.retry_after_s or 0.0) > self.max_retry_after_s
                    or (deadline is not None and time.monotonic() + wait_s >= deadline)
                ):
                    error.num_tries = num_failures
                    raise
                if on_retry:
                    on_retry(error, wait_s)
            # Outside of the `except` block, where the error and its frames would stay alive during a long wait.
            sleep(wait_s)

    def _wait_s(self, num_failures: int) -> float:
        # A float's power overflows after about a thousand tries, long after the longest wait is reached.
        growth = self.factor ** min(num_failures - 1, 64)
        deviation = random.uniform(1.0 - self.jitter, 1.0 + self.jitter)  # noqa: S311
        return min(self.max_wait_s, self.first_wait_s * growth) * deviation

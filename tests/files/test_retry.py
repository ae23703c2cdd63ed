"""The retry policy, without waiting: sleeps are recorded."""

import time
from collections.abc import Callable

import pytest

from sharp_cog.files.retry import RetryPolicy, TransientError

EXACT = RetryPolicy(max_tries=4, first_wait_s=1.0, jitter=0.0)


def unused(_: float) -> None:
    pytest.fail("the call waited")


def failing(num_times: int, error: Callable[[], Exception] = lambda: TransientError("HTTP 503")) -> Callable[[], str]:
    errors = [error() for _ in range(num_times)]

    def attempt() -> str:
        if errors:
            raise errors.pop()
        return "done"

    return attempt


def test_the_result_of_the_first_good_try_is_returned() -> None:
    waits: list[float] = []
    assert EXACT.call(failing(3), sleep=waits.append) == "done"
    assert waits == [1.0, 2.0, 4.0]


def test_the_last_error_is_raised_with_the_number_of_tries() -> None:
    waits: list[float] = []
    with pytest.raises(TransientError, match="HTTP 503") as caught:
        EXACT.call(failing(4), sleep=waits.append)
    assert caught.value.num_tries == 4
    assert waits == [1.0, 2.0, 4.0]


def test_other_errors_are_not_repeated() -> None:
    with pytest.raises(ValueError, match="HTTP 404"):
        EXACT.call(failing(1, lambda: ValueError("HTTP 404")), sleep=unused)


def test_waits_grow_to_the_longest_one_and_differ_within_the_jitter() -> None:
    policy = RetryPolicy(max_tries=2000, first_wait_s=1.0, factor=3.0, max_wait_s=20.0, jitter=0.25)
    waits: list[float] = []
    policy.call(failing(1999), sleep=waits.append)
    for wait_s, middle_s in zip(waits, [1.0, 3.0, 9.0] + 1996 * [20.0], strict=True):
        assert 0.75 * middle_s <= wait_s <= 1.25 * middle_s
    assert len(set(waits)) > 1900


def test_the_server_decides_how_long_to_wait() -> None:
    waits: list[float] = []
    EXACT.call(failing(1, lambda: TransientError("HTTP 429", retry_after_s=0.0)), sleep=waits.append)
    EXACT.call(failing(1, lambda: TransientError("HTTP 429", retry_after_s=60.0)), sleep=waits.append)
    assert waits == [0.0, 60.0]


def test_a_server_that_asks_for_too_long_a_wait_ends_the_call() -> None:
    with pytest.raises(TransientError) as caught:
        EXACT.call(failing(1, lambda: TransientError("HTTP 429", retry_after_s=61.0)), sleep=unused)
    assert caught.value.num_tries == 1


def test_no_try_starts_after_the_deadline() -> None:
    with pytest.raises(TransientError):
        EXACT.call(failing(1), sleep=unused, deadline=time.monotonic() + 0.9)
    assert EXACT.call(failing(1), sleep=lambda _: None, deadline=time.monotonic() + 60.0) == "done"


def test_failures_are_counted_from_the_last_progress() -> None:
    position, waits = 0, list[float]()

    def attempt() -> None:
        # Every third try receives something before it fails.
        nonlocal position
        position += len(waits) % 3 == 0
        if len(waits) < 12:
            raise TransientError("the connection broke")

    EXACT.call(attempt, sleep=waits.append, position=lambda: position)
    assert waits == 4 * [1.0, 2.0, 4.0]


def test_each_repetition_is_announced_before_the_wait() -> None:
    events: list[object] = []
    EXACT.call(
        failing(2),
        sleep=events.append,
        on_retry=lambda error, wait_s: events.append(f"{error}: waiting {wait_s:g} s"),
    )
    assert events == ["HTTP 503: waiting 1 s", 1.0, "HTTP 503: waiting 2 s", 2.0]

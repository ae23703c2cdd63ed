"""The queue between two steps of a run."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from sharp_cog.dataset.bounded_queue import BoundedQueue


def test_items_keep_their_order_and_never_exceed_the_limit() -> None:
    queue: BoundedQueue[int] = BoundedQueue(2)
    seen: list[int] = []
    most = 0

    def fill() -> None:
        for number in range(20):
            assert queue.put(number)
        queue.close()

    thread = threading.Thread(target=fill)
    thread.start()
    while (item := queue.take()) is not None:
        most = max(most, len(queue))
        seen.append(item)
    thread.join(5)
    assert seen == list(range(20))
    assert most <= 2
    assert queue.is_exhausted


def test_every_consumer_returns_when_the_queue_is_closed() -> None:
    queue: BoundedQueue[int] = BoundedQueue(4)
    with ThreadPoolExecutor(3) as consumers:
        futures = [consumers.submit(lambda: list(iter(queue.take, None))) for _ in range(3)]
        for number in range(30):
            queue.put(number)
        queue.close()
        taken = [item for future in futures for item in future.result(5)]
    assert sorted(taken) == list(range(30))


def test_abort_releases_a_producer_that_waits_for_room() -> None:
    queue: BoundedQueue[int] = BoundedQueue(1)
    assert queue.put(1)
    with ThreadPoolExecutor(1) as producer:
        future = producer.submit(queue.put, 2)
        time.sleep(0.05)
        assert not future.done()
        queue.abort()
        assert future.result(5) is False
    assert queue.take() is None
    assert queue.is_exhausted


def test_take_returns_none_after_its_timeout() -> None:
    queue: BoundedQueue[int] = BoundedQueue(1)
    begun = time.monotonic()
    assert queue.take(0.05) is None
    assert time.monotonic() - begun >= 0.05
    assert not queue.is_exhausted

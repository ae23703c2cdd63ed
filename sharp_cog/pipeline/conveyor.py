"""Stages that overlap: while one item is on the device, the next is decoded and the last one is written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a conveyor.

    Attributes:
        function: Takes what the stage before returned, and returns what the next stage takes. If it raises
            `CancelledError`, the item is left out of the results.
        num_threads: Number of threads that call it at once. A stage with one thread sees the items in the order in
            which they were pushed.
        name: Name of its threads.
    """

    function: Callable[[Any], Any]
    num_threads: int = 1
    name: str = "stage"


class Ticket(Generic[_T]):
    """An item under way on a conveyor.

    Attributes:
        future: Future of the last stage's result.
    """

    future: Future[_T]

    def __init__(self, item: Any, num_stages: int) -> None:
        self._value = item
        self._num_left = num_stages
        self._is_cancelled = False
        self._lock = threading.Lock()

    def cancel(self) -> None:
        """Drop the item before its next stage; an item that only waits for its last stage is finished."""
        with self._lock:
            self._is_cancelled = True
            self._drop_if_cancelled()

    def _run(self, function: Callable[[Any], Any], before: Future[Any] | None) -> Any:
        """Run one stage in its thread, as soon as the stage before has ended."""
        # An error of the stage before is raised here, and so it passes through all later stages to the caller.
        if before is not None:
            before.result()
        with self._lock:
            # An item that has only its last stage left is finished: what the device has computed is worth writing.
            if self._is_cancelled and self._num_left > 1:
                raise CancelledError
            # Only the stage at work holds the value, so that a large one is freed as soon as a stage replaces it.
            value, self._value = self._value, None
            self._num_left -= 1
        # Outside of the lock, so that `cancel` returns while a stage is at work.
        result = function(value)
        if self._num_left == 0:
            return result
        with self._lock:
            self._value = result
            self._drop_if_cancelled()
        return None

    def _drop_if_cancelled(self) -> None:
        # The stages that are left wait in their threads' queues, perhaps for long, and must not hold an image there.
        if self._is_cancelled and self._num_left > 1:
            self._value = None


class Conveyor(Generic[_T]):
    """Runs items through stages, each in threads of its own.

    Every stage of an item is submitted when the item is pushed, and waits in its thread for the stage before. So no
    stage waits for a later one, and items arrive at each stage in the order of their pushes.

    A context manager, which closes the conveyor.
    """

    def __init__(self, *stages: Stage) -> None:
        """Create the thread pools; no thread starts before the first item.

        Args:
            stages: The steps, first to last.
        """
        self._stages = stages
        self._executors = [ThreadPoolExecutor(stage.num_threads, thread_name_prefix=stage.name) for stage in stages]
        self._pushing = threading.Lock()

    def push(self, item: Any) -> Ticket[_T]:
        """Put an item on the conveyor, without waiting; the caller limits the number of items under way.

        Raises:
            RuntimeError: The conveyor is closed.
        """
        ticket: Ticket[_T] = Ticket(item, len(self._stages))
        future: Future[Any] | None = None
        # Two callers must not interleave, or a stage would wait for an item that is behind its own.
        with self._pushing:
            for stage, executor in zip(self._stages, self._executors, strict=True):
                future = executor.submit(ticket._run, stage.function, future)
        assert future is not None
        ticket.future = future
        return ticket

    def run(self, items: Iterable[Any], *, max_items: int, ordered: bool = True) -> Generator[_T, None, None]:
        """Run items through all stages.

        When the iteration ends early, items that wait for any stage but the last are dropped.

        Args:
            items: The items. They are iterated in a thread of their own, as there is room for them.
            max_items: Maximum number of items under way. An item counts until the consumer asks for the next result.
            ordered: Whether results come in the order of the items, or as soon as they are known.

        Yields:
            The result of the last stage for each item; nothing for an item whose stage raised `CancelledError`.

        Raises:
            Exception: Whatever a stage or the iteration over the items raises.
        """
        feed: _Feed[_T] = _Feed(self, items, max_items, ordered=ordered)
        # The iteration over the items may block, so its thread must not keep the process from ending.
        threading.Thread(target=feed.run, daemon=True, name="feed").start()
        try:
            while (future := feed.next()) is not None:
                with suppress(CancelledError):
                    yield future.result()
                feed.release(future)
                del future  # It would hold the result while the next one is waited for.
        finally:
            feed.stop()

    def close(self) -> None:
        """Wait for the items that were pushed and not cancelled, and end the threads."""
        for executor in self._executors:
            executor.shutdown(wait=True)

    def __enter__(self) -> Conveyor[_T]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Feed(Generic[_T]):
    """Pushes the items of one run, in a thread, and hands the futures of their results to the consumer."""

    def __init__(self, conveyor: Conveyor[_T], items: Iterable[Any], max_items: int, *, ordered: bool) -> None:
        self._conveyor, self._items, self._ordered = conveyor, items, ordered
        self._room = threading.Semaphore(max_items)
        self._tickets: dict[Future[_T], Ticket[_T]] = {}
        self._is_stopped = self._has_ended = False
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._futures: SimpleQueue[Future[_T] | None] = SimpleQueue()

    def run(self) -> None:
        """Push all items. Body of the thread."""
        try:
            for item in self._items:
                # The item is taken before there is room for it, so that one more than `max_items` exists.
                self._room.acquire()
                with self._lock:
                    # `stop` takes the same lock, so an item is pushed early enough to be cancelled, or not at all.
                    if self._is_stopped:
                        return
                    ticket = self._conveyor.push(item)
                    self._tickets[ticket.future] = ticket
                # An ordered run waits for the futures in this order; otherwise each comes when it is done.
                if self._ordered:
                    self._futures.put(ticket.future)
                else:
                    ticket.future.add_done_callback(self._futures.put)
                del item, ticket  # They would hold a result while the next item is waited for.
        except BaseException as error:  # noqa: BLE001 - raised again by the consumer, which would wait for ever
            self._failure = error
        # The mark of the end. An unordered run may get it before the last results, which are still under way.
        self._futures.put(None)

    def next(self) -> Future[_T] | None:
        """Return the next future, in the order of the items or of their ends; None after the last one.

        Raises:
            BaseException: The iteration over the items has failed. In an ordered run, the results before it come first.
        """
        while not self._has_ended or self._tickets:
            future = self._futures.get()
            if future is not None:
                return future
            self._has_ended = True
            if self._failure is not None:
                raise self._failure
        return None

    def release(self, future: Future[_T]) -> None:
        """Forget a result, and make room for another item."""
        # Without the lock: `stop` is the only loop over the tickets, and runs in the same thread as this.
        del self._tickets[future]
        self._room.release()

    def stop(self) -> None:
        """Push no more items, and cancel those under way."""
        with self._lock:
            self._is_stopped = True
            for ticket in self._tickets.values():
                ticket.cancel()
        self._room.release()  # The thread may wait for room.

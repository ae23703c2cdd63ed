"""Stages that overlap: while one item is on the device, the next is decoded and the last one is written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a conveyor.

    Attributes:
        function: Takes what the stage before returned, and returns what the next stage takes.
        num_threads: Number of threads that call it at once. A stage with one thread sees the items in the order in
            which they were pushed.
        name: Name of its threads.
    """

    function: Callable[[Any], Any]
    num_threads: int = 1
    name: str = "stage"


class Ticket(Generic[_T]):
    """An item under way on a conveyor."""

    def __init__(self, futures: tuple[Future[Any], ...], release: Callable[[], None]) -> None:
        self._futures, self._release = futures, release

    @property
    def future(self) -> Future[_T]:
        """The result of the last stage."""
        return self._futures[-1]

    def cancel(self) -> None:
        """Drop what has not begun; an item that only waits for its last stage is finished."""
        for index, future in enumerate(self._futures):
            if future.running() or future.done():
                continue
            if index < len(self._futures) - 1:
                for later in self._futures[index:]:
                    later.cancel()
            return

    def release(self) -> None:
        """Make room for another item."""
        self._release()


class Conveyor(Generic[_T]):
    """Runs items through stages, a bounded number of them at once.

    Every stage of an item is submitted when the item is pushed, and waits in its thread for the stage before. So no
    stage waits for a later one, and items arrive at each stage in the order of their pushes.
    """

    def __init__(self, *stages: Stage, max_items: int) -> None:
        """Create the threads' pools; no thread starts before the first push.

        Args:
            stages: The steps, first to last.
            max_items: Number of items under way before `push` blocks.
        """
        self._stages = stages
        self._executors = [ThreadPoolExecutor(stage.num_threads, thread_name_prefix=stage.name) for stage in stages]
        self._room = threading.Semaphore(max_items)
        self._pushing = threading.Lock()

    def push(self, item: Any) -> Ticket[_T]:
        """Put an item on the conveyor; blocks while it is full. The caller releases the ticket."""
        self._room.acquire()
        before: Future[Any] = Future()
        before.set_result(item)
        futures = []
        with self._pushing:
            for stage, executor in zip(self._stages, self._executors, strict=True):
                before = executor.submit(_run, stage.function, before)
                futures.append(before)
        return Ticket(tuple(futures), self._room.release)

    def run(self, items: Iterable[Any], *, ordered: bool = True) -> Iterator[_T]:
        """Run items through all stages.

        When the iteration ends early, items that wait for any stage but the last are dropped.

        Args:
            items: Taken in a thread, as there is room for them.
            ordered: Whether results come in the order of the items, or as soon as they are known.

        Yields:
            The result of the last stage for each item; nothing for an item whose stage raised `CancelledError`.

        Raises:
            Exception: Whatever a stage, or taking an item, raises.
        """
        results: SimpleQueue[Ticket[_T] | Exception | None] = SimpleQueue()
        tickets: set[Ticket[_T]] = set()
        stopped = threading.Event()
        feeder = threading.Thread(target=self._feed, args=(items, results, tickets, stopped, ordered), daemon=True)
        feeder.start()
        try:
            has_more = True
            while has_more or tickets:
                result = results.get()
                if result is None:
                    has_more = False
                    continue
                if isinstance(result, Exception):
                    raise result
                try:
                    value = result.future.result()
                except CancelledError:
                    tickets.discard(result)
                    result.release()
                    continue
                tickets.discard(result)
                try:
                    yield value
                finally:
                    result.release()
        finally:
            stopped.set()
            for ticket in list(tickets):
                ticket.cancel()
                ticket.release()

    def _feed(
        self,
        items: Iterable[Any],
        results: SimpleQueue[Ticket[_T] | Exception | None],
        tickets: set[Ticket[_T]],
        stopped: threading.Event,
        ordered: bool,
    ) -> None:
        try:
            for item in items:
                ticket = self.push(item)
                if stopped.is_set():
                    ticket.cancel()
                    return
                tickets.add(ticket)
                if ordered:
                    results.put(ticket)
                else:
                    ticket.future.add_done_callback(lambda _, ticket=ticket: results.put(ticket))  # type: ignore[misc]
        except Exception as error:  # noqa: BLE001 - raised again by the consumer
            results.put(error)
        results.put(None)

    def close(self) -> None:
        """Drop what has not begun, and wait for the threads."""
        for executor in self._executors:
            executor.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Conveyor[_T]:
        return self

    def __exit__(self, *error: object) -> None:
        for executor in self._executors:
            executor.shutdown(wait=True)


def _run(function: Callable[[Any], Any], before: Future[Any]) -> Any:
    return function(before.result())

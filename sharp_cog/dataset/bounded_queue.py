"""A bounded queue between two steps of a run, which either side can end."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

_T = TypeVar("_T")


class BoundedQueue(Generic[_T]):
    """A first-in, first-out queue with a maximum length, for many threads.

    The producer calls `close` when it has no more items. The consumer calls `abort` when it cannot continue. So neither
    side waits for one that has ended.
    """

    def __init__(self, max_items: int) -> None:
        self._max_items = max_items
        self._items: deque[_T] = deque()
        self._changed = threading.Condition()
        self._is_closed = self._is_aborted = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: _T) -> bool:
        """Wait for room and add an item; return False if the queue was aborted."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_aborted or len(self._items) < self._max_items)
            if self._is_aborted:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def take(self, timeout_s: float | None = None) -> _T | None:
        """Wait for an item and remove it; return None after the timeout, or once the queue is exhausted."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not self._items:
                left = None if deadline is None else deadline - time.monotonic()
                if self._is_closed or self._is_aborted or (left is not None and left <= 0):
                    return None
                self._changed.wait(left)
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    @property
    def is_exhausted(self) -> bool:
        """Whether the queue is empty and will stay so."""
        with self._changed:
            return self._is_aborted or (self._is_closed and not self._items)

    def close(self) -> None:
        """Declare that no more items will be added."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def abort(self) -> None:
        """Drop all items and refuse new ones."""
        with self._changed:
            self._is_aborted = True
            self._items.clear()
            self._changed.notify_all()

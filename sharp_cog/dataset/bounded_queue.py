"""A bounded queue between two steps of a run, which either end can end."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

_T = TypeVar("_T")


class BoundedQueue(Generic[_T]):
    """A queue of at most so many items.

    Whoever fills it closes it when there is no more; whoever empties it breaks it off when it cannot go on. So no step
    waits for one that has ended.
    """

    def __init__(self, max_items: int) -> None:
        self._max_items = max_items
        self._items: deque[_T] = deque()
        self._changed = threading.Condition()
        self._is_closed = self._is_broken = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: _T) -> bool:
        """Waits for room, and puts an item in; False where nobody takes any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_broken or len(self._items) < self._max_items)
            if self._is_broken:
                return False
            self._items.append(item)
            self._changed.notify_all()
            return True

    def take(self, timeout_s: float | None = None) -> _T | None:
        """Waits for an item; None after a while, or where `is_over`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not self._items:
                left = None if deadline is None else deadline - time.monotonic()
                if self._is_closed or self._is_broken or (left is not None and left <= 0):
                    return None
                self._changed.wait(left)
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    @property
    def is_over(self) -> bool:
        """Whether there is no item, and will be none."""
        with self._changed:
            return self._is_broken or (self._is_closed and not self._items)

    def close(self) -> None:
        """Nothing more will be put in."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def break_off(self) -> None:
        """Nothing more will be taken."""
        with self._changed:
            self._is_broken = True
            self._items.clear()
            self._changed.notify_all()

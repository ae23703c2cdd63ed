"""A budget of something that requests take and give back, such as bytes of memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Budget:
    """Hands out parts of an amount, to those that wait in the order in which they came.

    Attributes:
        amount: The whole amount.
        left: The part that nobody holds.
    """

    def __init__(self, amount: int) -> None:
        self.amount = self.left = amount
        # asyncio wakes the waiters of a lock in the order in which they came.
        self._turn = asyncio.Lock()
        self._given_back = asyncio.Event()

    @asynccontextmanager
    async def held(self, part: int) -> AsyncIterator[None]:
        """Hold a part until the end of the block, as soon as there is enough of it.

        Args:
            part: At most the whole amount.
        """
        async with self._turn:
            while self.left < part:
                self._given_back.clear()
                await self._given_back.wait()
            self.left -= part
        try:
            yield
        finally:
            self.left += part
            self._given_back.set()

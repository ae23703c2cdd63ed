"""Bounds of what clients may hold: requests that are being read, answers that are being sent, and disk for both.

A client decides how fast it sends and reads, and occupies a place and disk meanwhile. So uploads have a limited number
of places, each transfer has a least rate, and room on the disk is reserved before a body is read. While others wait,
the least rate rises, and the slowest client loses its place first.
"""

from __future__ import annotations

import asyncio
import math
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import BusyError, NoSpaceError, SlowClientError

_T = TypeVar("_T")

PRESSURE = 10
"""Factor of the least rate while other requests wait for a place or for disk, and divisor of the time of grace."""
SPOOLED_BYTES = 1 << 20
"""Largest body that certainly stays in memory, since Starlette keeps files of this size there."""
LOOK_SECONDS = 0.05
"""Seconds between two looks of a request that waits for a place."""


class Mean:
    """A moving average of measured seconds, in which about the last five count."""

    def __init__(self, first: float = 1.0) -> None:
        self.seconds = first

    def add(self, seconds: float) -> None:
        """Add a measurement."""
        self.seconds += 0.2 * (seconds - self.seconds)


class Pace:
    """Least rate of a client, with seconds of grace that it uses up while it is slower and earns back afterwards.

    Grace has a maximum, so that a client that was fast before may not stall for longer.

    Attributes:
        left_s: Seconds for which the client may still send or read nothing.
    """

    def __init__(self, bytes_per_s: float, grace_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._grace_s = grace_s
        self.left_s = grace_s

    def note(self, waited_s: float, num_bytes: int) -> None:
        """Take note of the bytes that came or went after some seconds of waiting for the client."""
        self.left_s = min(self._grace_s, max(0.0, self.left_s - waited_s) + num_bytes / self._bytes_per_s)


class Transfer:
    """An upload or an answer under way."""

    def __init__(self, settings: ServiceSettings, what: str, num_bytes: int = 0) -> None:
        """Begin a transfer.

        Args:
            settings: Settings with the least rate.
            what: Noun for the transfer in errors and metrics.
            num_bytes: Bytes to reserve on the disk.
        """
        bytes_per_s = 1e3 * settings.min_kilobytes_per_second
        self.num_bytes_to_come = num_bytes
        self._what = what
        self._least = f"{settings.min_kilobytes_per_second:g} kB a second for {settings.stall_seconds:g} s"
        self._pace = Pace(bytes_per_s, settings.stall_seconds)
        self._pressed = Pace(PRESSURE * bytes_per_s, settings.stall_seconds / PRESSURE)
        self._waits_since: float | None = None
        self._limit: asyncio.Timeout | None = None
        self._is_ended = False

    async def wait(self, step: Awaitable[_T], num_bytes_of: Callable[[_T], int]) -> _T:
        """Wait for the client, as long as its pace allows.

        Args:
            step: Receives or sends something.
            num_bytes_of: Returns the number of bytes of the result.

        Raises:
            SlowClientError: The client is too slow, or `end` was called.
        """
        self._waits_since = start = time.monotonic()
        try:
            async with asyncio.timeout(0 if self._is_ended else self._pace.left_s) as self._limit:
                result = await step
        except TimeoutError:
            raise self._error() from None
        finally:
            self._waits_since = self._limit = None
        waited_s, num_bytes = time.monotonic() - start, num_bytes_of(result)
        for pace in (self._pace, self._pressed):
            pace.note(waited_s, num_bytes)
        self.num_bytes_to_come = max(0, self.num_bytes_to_come - num_bytes)
        return result

    def _error(self) -> SlowClientError:
        if self._is_ended:
            return SlowClientError(
                f"the {self._what} was slow while others waited for its place: try again in a while, or over a faster "
                "connection",
                reason=f"slow_{self._what}",
            )
        return SlowClientError(
            f"the {self._what} came at less than {self._least}: try again over a faster connection, or with a smaller "
            "file",
            reason=f"slow_{self._what}",
        )

    @property
    def spare_s(self) -> float:
        """Seconds until the client is too slow for a time in which others wait; negative if it is."""
        waited_s = 0.0 if self._waits_since is None else time.monotonic() - self._waits_since
        return self._pressed.left_s - waited_s

    def end(self) -> None:
        """End the transfer: its present or next wait raises a `SlowClientError`."""
        self._is_ended = True
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time())


class Transfers:
    """All transfers of a service."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._uploads: set[Transfer] = set()
        self._stored: set[Transfer] = set()
        self._answers: set[Transfer] = set()
        # asyncio wakes the waiters of a lock in the order in which they came.
        self._turn = asyncio.Lock()
        self._mean = Mean()

    @property
    def num_uploads(self) -> int:
        """Number of requests whose body is being read."""
        return len(self._uploads)

    @property
    def num_answers(self) -> int:
        """Number of answers that are being sent."""
        return len(self._answers)

    @asynccontextmanager
    async def reserved(self, num_bytes: int) -> AsyncIterator[Transfer]:
        """Reserve a place for an upload, and disk until the end of the block. `arrived` gives the place back.

        Args:
            num_bytes: Length of the body, as far as it is known.

        Raises:
            BusyError: All places are taken by faster clients, or the disk is needed for other requests.
            NoSpaceError: The disk has no room, and no request under way is going to give some back.
        """
        transfer = Transfer(self._settings, "upload", num_bytes if num_bytes > SPOOLED_BYTES else 0)
        await self._admit(transfer)
        start = time.monotonic()
        try:
            yield transfer
        finally:
            self._mean.add(time.monotonic() - start)
            self._uploads.discard(transfer)
            self._stored.discard(transfer)

    def arrived(self, transfer: Transfer) -> None:
        """Give back the place of an upload, whose bytes stay on the disk."""
        transfer.num_bytes_to_come = 0
        self._uploads.discard(transfer)

    @contextmanager
    def answering(self) -> Iterator[Transfer]:
        """Count an answer among the transfers until the end of the block."""
        transfer = Transfer(self._settings, "answer")
        self._answers.add(transfer)
        try:
            yield transfer
        finally:
            self._answers.discard(transfer)

    def check_space(self, num_bytes: int = 0) -> None:
        """Check that the disk has room for more bytes, beside what is reserved and what stays free.

        Raises:
            BusyError: There will be room when the requests under way have ended.
            NoSpaceError: There is none.
        """
        folder = tempfile.gettempdir()
        reserved = sum(upload.num_bytes_to_come for upload in self._uploads)
        left = shutil.disk_usage(folder).free - reserved - 1e6 * self._settings.min_free_megabytes
        if num_bytes <= max(0, left) and left >= 0:
            return
        if self._uploads or self._stored or self._answers:
            wait_s = max(1, math.ceil(self._mean.seconds))
            raise BusyError(
                f"the service's disk is needed for the requests under way: try again in {wait_s} s",
                retry_after_s=wait_s,
                reason="disk",
            )
        raise NoSpaceError(
            f"the service's disk has no room for a request of {num_bytes / 1e6:.1f} MB: try again in a while, or send "
            "a smaller one"
        )

    def _check(self, transfer: Transfer) -> None:
        if len(self._uploads) >= self._settings.max_uploads:
            # One of so many places becomes free on average after that part of an upload's time.
            wait_s = max(1, math.ceil(self._mean.seconds / self._settings.max_uploads))
            raise BusyError(
                f"{len(self._uploads)} requests are being read, which is the limit: try again in {wait_s} s",
                retry_after_s=wait_s,
                reason="uploads",
            )
        self.check_space(transfer.num_bytes_to_come)

    async def _admit(self, transfer: Transfer) -> None:
        deadline = time.monotonic() + self._settings.stall_seconds
        try:
            async with asyncio.timeout(self._settings.stall_seconds):
                await self._turn.acquire()
        except TimeoutError:
            self._check(transfer)
            raise BusyError("too many requests wait to be read: try again in 1 s", reason="uploads") from None
        try:
            while True:
                try:
                    self._check(transfer)
                    break
                except BusyError as error:
                    # Nothing that is under way would help against a disk that others have filled.
                    if isinstance(error, NoSpaceError) or time.monotonic() >= deadline:
                        raise
                    self._end_slowest()
                await asyncio.sleep(LOOK_SECONDS)
            self._uploads.add(transfer)
            self._stored.add(transfer)
        finally:
            self._turn.release()

    def _end_slowest(self) -> None:
        """End the transfer of the client that is slowest, if it is too slow for a time in which others wait."""
        is_full = len(self._uploads) >= self._settings.max_uploads
        slowest = min(self._uploads if is_full else self._uploads | self._answers, key=_spare_s, default=None)
        if slowest is not None and slowest.spare_s < 0:
            slowest.end()


def _spare_s(transfer: Transfer) -> float:
    return transfer.spare_s

"""Fetching of URLs in requests: before the queue of the device, in threads of its own, and with limits of its own."""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from typing import IO, cast
from urllib.parse import urlsplit

from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import BusyError
from sharp_cog.serving import inputs
from sharp_cog.serving.transfers import LOOK_SECONDS, SPOOLED_BYTES, Mean

HOST_SHARE = 4
"""Part of the places, one divided by this, that requests for the same host may take, so that a slow one leaves some."""


class Fetching:
    """Fetches the URLs of a limited number of requests at once.

    Attributes:
        num_requests: Number of requests whose URLs are being fetched.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.num_requests = 0
        self._num_by_host: Counter[str] = Counter()
        self._settings = settings
        # A request has two URLs at most.
        self._threads = ThreadPoolExecutor(2 * settings.max_fetches, thread_name_prefix="fetch")
        self._mean = Mean()

    @asynccontextmanager
    async def fetched(self, urls: Mapping[str, str]) -> AsyncIterator[dict[str, IO[bytes]]]:
        """Fetch URLs, at the same time, and keep the content until the end of the block.

        Args:
            urls: URLs by the names of their fields.

        Yields:
            A file for each field. A large one is on the disk.

        Raises:
            BusyError: Too many requests are being fetched.
            InputError: A URL cannot be fetched.
            OutputError: The disk has no room.
        """
        hosts = {_host(url) for url in urls.values()}
        await self._wait_for_place(hosts)
        with ExitStack() as stack:
            files = {name: stack.enter_context(_new_file()) for name in urls}
            fetches = [asyncio.wrap_future(self._submit(name, url, files[name])) for name, url in urls.items()]
            # A thread cannot be stopped, so a request that is cancelled keeps its place until its threads have ended.
            ended = asyncio.ensure_future(asyncio.wait(fetches))
            self._enter(hosts)
            start = time.monotonic()
            ended.add_done_callback(lambda _: self._leave(hosts, start, fetches))
            await asyncio.shield(ended)
            for fetch in fetches:
                fetch.result()
            yield files

    def close(self) -> None:
        """Take no more work. Fetches under way end by their time limit."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _wait_for_place(self, hosts: set[str]) -> None:
        limit, deadline = self._settings.max_fetches, time.monotonic() + self._settings.stall_seconds
        while self.num_requests >= limit or any(self._num_by_host[host] >= -(-limit // HOST_SHARE) for host in hosts):
            if time.monotonic() >= deadline:
                wait_s = max(1, math.ceil(self._mean.seconds / max(1, self.num_requests)))
                raise BusyError(
                    f"the URLs of {self.num_requests} other requests are being fetched: try again in {wait_s} s, or "
                    "upload the image",
                    retry_after_s=wait_s,
                    reason="fetches",
                )
            await asyncio.sleep(LOOK_SECONDS)

    def _submit(self, name: str, url: str, file: IO[bytes]) -> Future[None]:
        return self._threads.submit(inputs.fetch_named_into, name, url, self._settings, file)

    def _enter(self, hosts: set[str]) -> None:
        self.num_requests += 1
        self._num_by_host.update(hosts)

    def _leave(self, hosts: set[str], start: float, fetches: list[asyncio.Future[None]]) -> None:
        # Requests that were cancelled, or failed by their other URL, ask for no result: asyncio would log the error.
        for fetch in fetches:
            if not fetch.cancelled():
                fetch.exception()
        self.num_requests -= 1
        self._num_by_host.subtract(hosts)
        for host in hosts:
            if not self._num_by_host[host]:
                del self._num_by_host[host]
        self._mean.add(time.monotonic() - start)


def _host(url: str) -> str:
    try:
        return urlsplit(url.strip()).hostname or ""
    except ValueError:  # The fetch will refuse it.
        return ""


def _new_file() -> IO[bytes]:
    return cast(IO[bytes], tempfile.SpooledTemporaryFile(SPOOLED_BYTES))

"""Fetching of URLs beside the queue: its limits, and hosts that do not answer."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import Awaitable, Iterator

import pytest

from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import BusyError, FetchError
from sharp_cog.serving.fetching import Fetching
from tests.website import Site, says


@pytest.fixture
def silent_url() -> Iterator[str]:
    """URL of a server that does not answer."""
    with socket.create_server(("127.0.0.2", 0), backlog=50) as listener:
        yield f"http://127.0.0.2:{listener.getsockname()[1]}/a"


def fetching(**settings: float) -> Fetching:
    return Fetching(ServiceSettings(fetch_private=True, **settings))  # type: ignore[arg-type]


async def content_of(work: Fetching, **urls: str) -> dict[str, bytes]:
    async with work.fetched(urls) as files:
        for file in files.values():
            file.seek(0)
        return {name: file.read() for name, file in files.items()}


async def outcome(work: Awaitable[object]) -> str:
    """Return the name of the error that the work raises."""
    try:
        await work
    except BusyError as error:
        return f"busy with {error.reason}"
    except FetchError as error:
        return type(error).__name__
    return "none"


def test_both_urls_of_a_request_are_fetched(site: Site) -> None:
    async def main() -> None:
        work = fetching()
        urls = {"image_url": site.url("/a", says(b"image")), "depth_url": site.url("/b", says(bytes(3_000_000)))}
        assert await content_of(work, **urls) == {"image_url": b"image", "depth_url": bytes(3_000_000)}
        assert work.num_requests == 0
        assert await outcome(content_of(work, image_url="ftp://127.0.0.1/a")) == "FetchError"
        assert work.num_requests == 0
        work.close()

    asyncio.run(main())


def test_a_host_that_does_not_answer_leaves_places_for_others(site: Site, silent_url: str) -> None:
    async def main() -> None:
        work = fetching(max_fetches=4, fetch_seconds=1, stall_seconds=0.1)
        slow = [asyncio.create_task(outcome(content_of(work, image_url=silent_url))) for _ in range(6)]
        await asyncio.sleep(0.05)
        assert work.num_requests == 1, "a quarter of the places"
        start = time.monotonic()
        assert await content_of(work, image_url=site.url("/a", says(b"image"))) == {"image_url": b"image"}
        assert time.monotonic() - start < 0.9
        assert sorted(await asyncio.gather(*slow)) == ["FetchError", *["busy with fetches"] * 5]
        work.close()

    asyncio.run(main())


def test_a_request_that_has_left_keeps_its_place_until_its_thread_has_ended(silent_url: str) -> None:
    async def main() -> None:
        work = fetching(max_fetches=1, fetch_seconds=0.4, stall_seconds=2)
        task = asyncio.create_task(content_of(work, image_url=silent_url))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        assert work.num_requests == 1
        # Once the first one's thread has ended.
        assert await outcome(content_of(work, image_url=silent_url)) == "FetchError"
        assert work.num_requests == 0
        work.close()

    asyncio.run(main())


def test_the_error_of_a_fetch_that_nobody_waits_for_is_not_logged(silent_url: str) -> None:
    logged: list[str] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: logged.append(context["message"]))
        work = fetching(fetch_seconds=0.5)
        cancelled = asyncio.ensure_future(content_of(work, image_url=silent_url))
        await asyncio.sleep(0.1)
        cancelled.cancel()
        # The first error is raised, and nobody asks for the second one.
        await outcome(content_of(work, image_url="ftp://127.0.0.1/a", depth_url="ftp://127.0.0.1/b"))
        while work.num_requests:
            await asyncio.sleep(0.05)
        await asyncio.sleep(0)
        gc.collect()
        await asyncio.sleep(0)
        work.close()

    asyncio.run(main())
    assert logged == []

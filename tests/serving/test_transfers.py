"""Bounds of uploads and answers: places, least rates, room on the disk, and who loses a place."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import BusyError, NoSpaceError, SlowClientError
from sharp_cog.serving.transfers import Pace, Transfer, Transfers

MB = 1_000_000


def run(work: Callable[[Transfers], Awaitable[None]], **settings: float) -> None:
    async def main() -> None:
        transfers = Transfers(ServiceSettings(**settings))  # type: ignore[arg-type]
        await asyncio.wait_for(work(transfers), 30)
        assert transfers.num_uploads == transfers.num_answers == 0

    asyncio.run(main())


async def after(seconds: float, num_bytes: int) -> int:
    await asyncio.sleep(seconds)
    return num_bytes


async def receive(upload: Transfer, seconds: float = 0.0, num_bytes: int = 1000) -> int:
    return await upload.wait(after(seconds, num_bytes), int)


def test_grace_is_used_up_while_a_client_is_slow_and_earned_back_up_to_its_maximum() -> None:
    pace = Pace(1000, 10)
    pace.note(4, 0)
    assert pace.left_s == 6
    pace.note(3, 1000)  # Three seconds for what may take one.
    assert pace.left_s == 4
    pace.note(0, MB)  # What came fast is no credit for later.
    assert pace.left_s == 10
    pace.note(30, 2000)
    assert pace.left_s == 2


def test_a_client_at_the_least_rate_is_never_too_slow() -> None:
    pace = Pace(1000, 10)
    for _ in range(1000):
        pace.note(5, 5000)
    assert pace.left_s == pytest.approx(10)


def test_a_transfer_that_stalls_is_ended() -> None:
    async def work(transfers: Transfers) -> None:
        async with transfers.reserved(5000) as upload:
            await receive(upload)
            with pytest.raises(SlowClientError, match=r"less than 10 kB a second for 0.1 s") as caught:
                await receive(upload, seconds=10)
            assert caught.value.reason == "slow_upload"
        with transfers.answering() as answer:
            assert transfers.num_answers == 1
            with pytest.raises(SlowClientError) as caught:
                await receive(answer, seconds=10)
            assert caught.value.reason == "slow_answer"

    run(work, stall_seconds=0.1)


def test_a_place_is_free_once_the_body_has_come() -> None:
    async def work(transfers: Transfers) -> None:
        async with transfers.reserved(10) as first:
            transfers.arrived(first)
            async with transfers.reserved(10):
                assert transfers.num_uploads == 1

    run(work, max_uploads=1)


def test_a_slow_client_loses_its_place_to_one_that_waits() -> None:
    """The faster one of the two that have the places stays."""

    async def work(transfers: Transfers) -> None:
        async with transfers.reserved(10) as slow, transfers.reserved(10) as fast:
            waiting = asyncio.create_task(receive(slow, seconds=20))
            loading = asyncio.create_task(load(fast))

            async def newcomer() -> int:
                async with transfers.reserved(10) as upload:
                    return await receive(upload)

            ended = asyncio.create_task(newcomer())
            with pytest.raises(SlowClientError, match="the upload was slow while others waited"):
                await waiting
            transfers.arrived(slow)  # Its block would end here.
            assert await ended == 1000
            await loading

    async def load(upload: Transfer) -> None:
        for _ in range(100):
            await receive(upload, seconds=0.002, num_bytes=100_000)

    run(work, max_uploads=2, stall_seconds=2)


def test_while_all_places_have_fast_clients_others_are_refused_with_the_time_to_try_again() -> None:
    async def work(transfers: Transfers) -> None:
        async with transfers.reserved(10):
            with pytest.raises(BusyError, match="1 requests are being read, which is the limit") as caught:
                async with transfers.reserved(10):
                    pass
        assert caught.value.reason == "uploads"
        assert caught.value.retry_after_s == 1

    run(work, max_uploads=1, stall_seconds=0.1)


def test_those_that_wait_for_a_place_get_it_in_their_order() -> None:
    order: list[int] = []

    async def work(transfers: Transfers) -> None:
        async def client(number: int) -> None:
            async with transfers.reserved(10):
                order.append(number)
                await asyncio.sleep(0.02)

        await asyncio.gather(*(client(number) for number in range(5)))

    run(work, max_uploads=1)
    assert order == [0, 1, 2, 3, 4]


def test_without_room_on_the_disk_a_request_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [500 * MB]
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": free[0]}))

    async def work(transfers: Transfers) -> None:
        async with transfers.reserved(150 * MB) as upload:
            # 500 less the 300 that stay free and the 150 that are to come.
            async with transfers.reserved(50 * MB):
                pass
            with pytest.raises(BusyError, match="needed for the requests under way") as caught:
                async with transfers.reserved(51 * MB):
                    pass
            assert (type(caught.value), caught.value.reason) == (BusyError, "disk")
            # What has come is on the disk, and no longer to come.
            await receive(upload, num_bytes=100 * MB)
            free[0] -= 100 * MB
            async with transfers.reserved(50 * MB):
                pass
        with pytest.raises(NoSpaceError, match=r"no room for a request of 151.0 MB"):
            async with transfers.reserved(151 * MB):
                pass
        free[0] = 299 * MB
        with pytest.raises(NoSpaceError):
            async with transfers.reserved(0):
                pass

    run(work, stall_seconds=0.1)


def test_an_answer_that_nobody_reads_gives_its_disk_to_a_request_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [0]
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": free[0]}))

    async def work(transfers: Transfers) -> None:
        async def unread() -> None:
            with transfers.answering() as answer:
                try:
                    await receive(answer, seconds=20)
                finally:
                    free[0] = 500 * MB

        task = asyncio.create_task(unread())
        await asyncio.sleep(0)
        async with transfers.reserved(10 * MB):
            pass
        with pytest.raises(SlowClientError):
            await task

    run(work, stall_seconds=3)

"""The queue in front of the device."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sharp_cog.config.options import PredictOptions
from sharp_cog.config.settings import ServiceSettings
from sharp_cog.errors import BusyError, CheckpointError, DeviceError, ImageError, PredictionError
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.serving.dispatch import AT_WORK, Dispatcher
from tests.gated import Gated, write


def run(pipeline: SharpPipeline, work: Callable[[Dispatcher], Awaitable[None]], **settings: float) -> Dispatcher:
    """Runs a test's work with a dispatcher that is ready, and closes it."""

    async def main() -> Dispatcher:
        dispatcher = Dispatcher(lambda: pipeline, ServiceSettings(**settings))  # type: ignore[arg-type]
        dispatcher.start()
        while dispatcher.state == "loading":
            await asyncio.sleep(0.001)
        try:
            await asyncio.wait_for(work(dispatcher), 30)
        finally:
            await asyncio.to_thread(dispatcher.close)
        return dispatcher

    return asyncio.run(main())


async def ask(dispatcher: Dispatcher, num_bytes: int, options: PredictOptions | None = None, name: str = "") -> int:
    request_id = name or str(num_bytes)
    with dispatcher.admitted(request_id):
        path, _ = await dispatcher.run(
            lambda: (bytes(num_bytes), None), options or PredictOptions(), write, suffix=".txt", request_id=request_id
        )
    count = int(path.read_text())
    path.unlink()
    return count


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_each_gets_its_own_and_the_device_one_at_a_time() -> None:
    pipeline = Gated()

    async def work(dispatcher: Dispatcher) -> None:
        asked = [number % 7 + 1 for number in range(50)]
        assert await asyncio.gather(*(ask(dispatcher, n, name=str(i)) for i, n in enumerate(asked))) == asked
        assert dispatcher.num_admitted == 0

    run(pipeline, work, queue_size=50)
    assert pipeline.most_at_once == 1


def test_the_queue_is_served_in_order() -> None:
    pipeline = Gated(is_open=False)

    async def work(dispatcher: Dispatcher) -> None:
        tasks = []
        for number in range(1, 9):
            tasks.append(asyncio.create_task(ask(dispatcher, number)))
            await until(lambda: dispatcher.num_admitted == number)  # noqa: B023
            await asyncio.sleep(0.02)
        await until(lambda: dispatcher.progress("1") == {"stage": "predict"})
        assert dispatcher.progress("8") == {"stage": "queued", "ahead": 7}
        assert dispatcher.progress("9") is None
        pipeline.gate.set()
        await asyncio.gather(*tasks)

    run(pipeline, work, kept_predictions=0)
    assert pipeline.predicted == list(range(1, 9))


def test_a_reader_that_overtakes_another_keeps_the_order() -> None:
    """The first picture is slow to read; the second waits for its turn, and one that fails stops nobody."""
    pipeline, slow = Gated(), threading.Event()

    async def work(dispatcher: Dispatcher) -> None:
        def read(number: int) -> tuple[bytes, None]:
            if number == 1:
                assert slow.wait(30)
            if number == 2:
                raise ImageError("no picture")
            return bytes(number), None

        async def one(number: int) -> None:
            with dispatcher.admitted(str(number)):
                await dispatcher.run(
                    lambda: read(number), PredictOptions(), write, suffix=".txt", request_id=str(number)
                )

        tasks = [asyncio.create_task(one(number)) for number in (1, 2, 3, 4)]
        await asyncio.sleep(0.1)
        assert pipeline.predicted == []
        slow.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [type(None), ImageError, type(None), type(None)]

    run(pipeline, work)
    assert pipeline.predicted == [1, 3, 4]


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    pipeline = Gated(is_open=False)

    async def work(dispatcher: Dispatcher) -> None:
        tasks = [asyncio.create_task(ask(dispatcher, number)) for number in (1, 2, 3)]
        await until(lambda: dispatcher.num_admitted == 3)
        with pytest.raises(BusyError, match="3 requests are waiting or under way") as caught:
            dispatcher.check()
        assert caught.value.retry_after_s >= 1
        with pytest.raises(BusyError), dispatcher.admitted("4"):
            pass
        pipeline.gate.set()
        assert await asyncio.gather(*tasks) == [1, 2, 3]
        assert await ask(dispatcher, 4) == 4

    run(pipeline, work, queue_size=2)


def test_who_leaves_the_queue_never_comes_to_the_device() -> None:
    pipeline = Gated(is_open=False)

    async def work(dispatcher: Dispatcher) -> None:
        tasks = [asyncio.create_task(ask(dispatcher, number)) for number in range(1, 8)]
        await until(lambda: dispatcher.progress("1") == {"stage": "predict"})
        await asyncio.sleep(0.05)
        for index in (1, 5):  # One that is decoded already, and one that waits with its bytes.
            tasks[index].cancel()
        await until(lambda: dispatcher.num_admitted == 5)
        pipeline.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for index, result in enumerate(results) if index in (1, 5)] == [asyncio.CancelledError] * 2

    run(pipeline, work)
    assert pipeline.predicted == [1, 3, 4, 5, 7]


def test_what_is_written_for_one_who_has_left_is_deleted() -> None:
    writing, go_on = threading.Event(), threading.Event()
    paths: list[Path] = []

    def slow_write(path: Path, prediction: Prediction) -> None:
        paths.append(path)
        writing.set()
        assert go_on.wait(30)
        write(path, prediction)

    async def work(dispatcher: Dispatcher) -> None:
        async def one() -> None:
            with dispatcher.admitted("one"):
                await dispatcher.run(
                    lambda: (b"x", None), PredictOptions(), slow_write, suffix=".txt", request_id="one"
                )

        task = asyncio.create_task(one())
        await asyncio.to_thread(writing.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        await asyncio.sleep(0.05)
        assert not paths[0].exists()
        assert dispatcher.num_admitted == 0

    run(Gated(), work)


def test_few_requests_hold_pictures_at_once() -> None:
    """The others wait with their bytes where they are."""
    pipeline, read = Gated(is_open=False), 0

    async def work(dispatcher: Dispatcher) -> None:
        def reads() -> tuple[bytes, None]:
            nonlocal read
            read += 1
            return b"x", None

        async def one(name: str) -> None:
            with dispatcher.admitted(name):
                await dispatcher.run(reads, PredictOptions(), write, suffix=".txt", request_id=name)

        tasks = [asyncio.create_task(one(str(number))) for number in range(12)]
        await asyncio.sleep(0.2)
        assert read == AT_WORK
        pipeline.gate.set()
        await asyncio.gather(*tasks)

    run(pipeline, work, kept_predictions=0)


def test_another_format_of_the_same_photograph_is_not_predicted_again() -> None:
    pipeline = Gated()

    async def work(dispatcher: Dispatcher) -> None:
        assert await ask(dispatcher, 9) == 9
        assert await ask(dispatcher, 9, PredictOptions(output_format="spz", max_gaussians=4)) == 4
        assert await ask(dispatcher, 9, PredictOptions(min_opacity=0.0)) == 9
        assert pipeline.predicted == [9]
        assert await ask(dispatcher, 9, PredictOptions(focal_length_px=5)) == 9
        assert await ask(dispatcher, 9, PredictOptions(depth_scale=2)) == 9
        assert await ask(dispatcher, 8) == 8
        assert await ask(dispatcher, 9) == 9
        assert pipeline.predicted == [9, 9, 9, 8, 9], "one is kept, the last"

    run(pipeline, work)


def test_nothing_is_kept_where_the_setting_says_so() -> None:
    pipeline = Gated()

    async def work(dispatcher: Dispatcher) -> None:
        for _ in range(2):
            assert await ask(dispatcher, 9) == 9

    run(pipeline, work, kept_predictions=0)
    assert pipeline.predicted == [9, 9]


def test_a_failure_is_its_own_requests_alone() -> None:
    pipeline = Gated()

    async def work(dispatcher: Dispatcher) -> None:
        pipeline.failure = PredictionError("out of memory")
        with pytest.raises(PredictionError):
            await ask(dispatcher, 1)
        pipeline.failure = None
        assert await ask(dispatcher, 2) == 2

    assert run(pipeline, work).num_admitted == 0


def test_a_device_that_failed_takes_no_more() -> None:
    pipeline = Gated()

    async def work(dispatcher: Dispatcher) -> None:
        pipeline.failure = DeviceError("CUDA error: an illegal memory access was encountered")
        with pytest.raises(DeviceError):
            await ask(dispatcher, 1)
        assert dispatcher.state == "failed"
        with pytest.raises(BusyError, match="must be started anew"):
            await ask(dispatcher, 2)

    run(pipeline, work)


def test_a_model_that_cannot_be_loaded_is_told() -> None:
    def load() -> SharpPipeline:
        raise CheckpointError("/models/sharp.pt is broken")

    async def main() -> None:
        dispatcher = Dispatcher(load, ServiceSettings())
        with pytest.raises(BusyError, match="is being loaded"):
            dispatcher.check()
        dispatcher.start()
        await until(lambda: dispatcher.state != "loading")
        assert dispatcher.state == "failed"
        assert isinstance(dispatcher.failure, CheckpointError)
        with pytest.raises(BusyError, match="has failed") as caught:
            dispatcher.check()
        assert "/models" not in str(caught.value)
        dispatcher.close()

    asyncio.run(main())


def test_stopping_refuses_what_comes_and_finishes_what_is_there() -> None:
    pipeline = Gated(is_open=False)

    async def work(dispatcher: Dispatcher) -> None:
        task = asyncio.create_task(ask(dispatcher, 1))
        await until(lambda: dispatcher.progress("1") == {"stage": "predict"})
        dispatcher.stop()
        with pytest.raises(BusyError, match="is stopping"):
            await ask(dispatcher, 2)
        pipeline.gate.set()
        assert await task == 1

    run(pipeline, work)


def test_memory_is_given_back_after_each_request_that_fails_or_works(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, times = Gated(), threading.Semaphore(0)
    monkeypatch.setattr("sharp_cog.serving.dispatch.give_back", times.release)

    async def work(dispatcher: Dispatcher) -> None:
        await ask(dispatcher, 3)
        assert await asyncio.to_thread(times.acquire, timeout=10)
        pipeline.failure = PredictionError("no memory")
        with pytest.raises(PredictionError):
            await ask(dispatcher, 4)
        assert await asyncio.to_thread(times.acquire, timeout=10)

    run(pipeline, work)

"""The dispatcher: its queue, its stages, cancelled requests, failures, its end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import BusyError, CheckpointError, DeviceError, ImageError, PredictionError, RequestTooLargeError
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.pipeline.request import Request
from sharp_cog.serving.dispatch import MAX_UNDER_WAY, Dispatcher, Read, Write
from tests.gated import Gated, write


def run(pipeline: SharpPipeline, work: Callable[[Dispatcher], Awaitable[None]], **settings: float) -> Dispatcher:
    """Run a test's work with a dispatcher that is ready, and close it."""

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


def image(num_bytes: int) -> Read:
    return lambda: Request(image=bytes(num_bytes))


async def start(dispatcher: Dispatcher, name: str, read: Read, write: Write = write) -> Path:
    with dispatcher.admitted(name) as place:
        path = dispatcher.new_path(".txt")
        await dispatcher.run(place, read, write, path)
        return path


async def ask(dispatcher: Dispatcher, num_bytes: int, name: str = "") -> int:
    path = await start(dispatcher, name or str(num_bytes), image(num_bytes))
    return int(path.read_text())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_each_caller_gets_its_own_splat_and_the_device_takes_one_at_a_time() -> None:
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

    run(pipeline, work)
    assert pipeline.predicted == list(range(1, 9))


def test_a_decoder_that_overtakes_another_keeps_the_order() -> None:
    """The first image is slow to read and the second one broken; neither stops the others."""
    pipeline, slow = Gated(), threading.Event()

    def read(number: int) -> Request:
        if number == 1:
            assert slow.wait(30)
        if number == 2:
            raise ImageError("not an image")
        return image(number)()

    async def work(dispatcher: Dispatcher) -> None:
        tasks = [
            asyncio.create_task(start(dispatcher, str(number), lambda number=number: read(number)))  # type: ignore[misc]
            for number in (1, 2, 3, 4)
        ]
        await asyncio.sleep(0.1)
        assert pipeline.predicted == []
        slow.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(result, Path) for result in results] == [True, False, True, True]
        assert isinstance(results[1], ImageError)

    run(pipeline, work)
    assert pipeline.predicted == [1, 3, 4]


def test_a_full_queue_refuses_and_says_when_to_try_again() -> None:
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


def test_the_time_to_try_again_follows_from_the_requests_that_have_ended() -> None:
    async def work(dispatcher: Dispatcher) -> None:
        for _ in range(50):
            dispatcher._interval.add(0.6)
        with contextlib.ExitStack() as stack:
            for number in range(5):
                stack.enter_context(dispatcher.admitted(str(number), is_expected=True))
            with pytest.raises(BusyError) as caught:
                dispatcher.check()
        # All five must end, each 0.6 s after the one before.
        assert (caught.value.retry_after_s, caught.value.reason) == (3, "queue")

    run(Gated(), work, queue_size=0)


def test_a_request_that_waits_for_the_time_to_try_again_is_admitted() -> None:
    pipeline = Gated(is_open=False)

    async def work(dispatcher: Dispatcher) -> None:
        async def slowly(number: int) -> None:
            await start(dispatcher, str(number), image(number), lambda path, _: time.sleep(0.3))

        pipeline.gate.set()
        await slowly(1)
        tasks = [asyncio.create_task(slowly(number)) for number in (2, 3)]
        await until(lambda: dispatcher.num_admitted == 2)
        with pytest.raises(BusyError) as caught:
            dispatcher.check()
        await asyncio.sleep(caught.value.retry_after_s)
        dispatcher.check()
        await asyncio.gather(*tasks)

    run(pipeline, work, queue_size=1)


def test_a_request_that_was_let_in_keeps_its_place_though_the_queue_is_full_by_then() -> None:
    pipeline = Gated(is_open=False)

    async def work(dispatcher: Dispatcher) -> None:
        task = asyncio.create_task(ask(dispatcher, 1))
        await until(lambda: dispatcher.num_admitted == 1)
        with pytest.raises(BusyError), dispatcher.admitted("2"):
            pass
        with dispatcher.admitted("2", is_expected=True):
            assert dispatcher.num_admitted == 2
        pipeline.gate.set()
        await task

    run(pipeline, work, queue_size=0)


def test_requests_wait_for_the_memory_that_their_images_need() -> None:
    pipeline, read = Gated(is_open=False), list[int]()

    async def work(dispatcher: Dispatcher) -> None:
        async def needing(megabytes: int) -> None:
            def take() -> Request:
                read.append(megabytes)
                return Request(image=bytes(megabytes))

            with dispatcher.admitted(str(megabytes)) as place:
                path = dispatcher.new_path(".txt")
                await dispatcher.run(place, take, write, path, measure=lambda: megabytes * 1_000_000)

        tasks = [asyncio.create_task(needing(megabytes)) for megabytes in (60, 50, 30)]
        await until(lambda: pipeline.at_once == 1)
        await asyncio.sleep(0.05)
        assert read == [60], "the others wait though there are threads for them"
        with pytest.raises(RequestTooLargeError, match="need some 101 MB of memory, and the service has 100 MB"):
            await needing(101)
        pipeline.gate.set()
        await asyncio.gather(*tasks)

    run(pipeline, work, memory_megabytes=100)
    assert sorted(read) == [30, 50, 60]


def test_stopping_drops_requests_before_the_device_and_waits_for_no_one_else() -> None:
    pipeline, reading, go_on = Gated(is_open=False), threading.Event(), threading.Event()

    def slow_read() -> Request:
        reading.set()
        assert go_on.wait(30)
        return image(2)()

    async def work(dispatcher: Dispatcher) -> None:
        first = asyncio.create_task(ask(dispatcher, 1))
        await until(lambda: dispatcher.progress("1") == {"stage": "predict"})
        decoded = asyncio.create_task(start(dispatcher, "2", slow_read))
        queued = [asyncio.create_task(ask(dispatcher, number)) for number in (3, 4, 5, 6, 7)]

        async def uploading() -> None:
            async with dispatcher.until_stopped():
                await asyncio.sleep(30)

        upload = asyncio.create_task(uploading())
        await asyncio.to_thread(reading.wait, 30)
        dispatcher.stop()
        for task in (decoded, *queued, upload):
            with pytest.raises(BusyError, match="the service is stopping"):
                await task
        with pytest.raises(BusyError, match="the service is stopping"):
            await uploading()
        assert not first.done()
        idle = asyncio.create_task(dispatcher.idle())
        await asyncio.sleep(0.05)
        assert not idle.done()
        pipeline.gate.set()
        go_on.set()
        assert await first == 1
        await idle

    run(pipeline, work)
    assert pipeline.predicted == [1]


def test_a_client_that_leaves_the_queue_frees_its_place_and_never_comes_to_the_device() -> None:
    pipeline = Gated(is_open=False)

    async def work(dispatcher: Dispatcher) -> None:
        tasks = [asyncio.create_task(ask(dispatcher, number)) for number in range(1, 8)]
        await until(lambda: dispatcher.progress("1") == {"stage": "predict"})
        await asyncio.sleep(0.05)
        for index in (1, 5):  # One of them is decoded already, and one waits with its bytes on disk.
            tasks[index].cancel()
        await until(lambda: dispatcher.num_admitted == 5)
        assert dispatcher.progress("2") is dispatcher.progress("6") is None
        assert dispatcher.progress("7") == {"stage": "queued", "ahead": 4}
        pipeline.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(results[index]) for index in (1, 5)] == [asyncio.CancelledError] * 2
        assert len(list(dispatcher.new_path("").parent.iterdir())) == 5

    run(pipeline, work)
    assert pipeline.predicted == [1, 3, 4, 5, 7]


def test_a_client_that_leaves_while_its_image_is_decoded_never_comes_to_the_idle_device() -> None:
    pipeline, reading, go_on = Gated(), threading.Event(), threading.Event()

    def slow_read() -> Request:
        reading.set()
        assert go_on.wait(30)
        return image(1)()

    async def work(dispatcher: Dispatcher) -> None:
        task = asyncio.create_task(start(dispatcher, "1", slow_read))
        await asyncio.to_thread(reading.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        assert await ask(dispatcher, 2) == 2

    run(pipeline, work)
    assert pipeline.predicted == [2]


def test_a_file_that_is_written_for_a_client_that_has_left_is_deleted() -> None:
    writing, go_on = threading.Event(), threading.Event()
    paths: list[Path] = []

    def slow_write(path: Path, prediction: Prediction) -> None:
        paths.append(path)
        writing.set()
        assert go_on.wait(30)
        write(path, prediction)

    async def work(dispatcher: Dispatcher) -> None:
        task = asyncio.create_task(start(dispatcher, "one", image(1), slow_write))
        await asyncio.to_thread(writing.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert dispatcher.num_admitted == 0
        go_on.set()
        await asyncio.sleep(0.05)
        assert not paths[0].exists()

    run(Gated(), work)


def test_few_requests_hold_images_at_once() -> None:
    """The other requests are not read before there is room."""
    pipeline, num_read = Gated(is_open=False), 0

    def read() -> Request:
        nonlocal num_read
        num_read += 1
        return image(1)()

    async def work(dispatcher: Dispatcher) -> None:
        tasks = [asyncio.create_task(start(dispatcher, str(number), read)) for number in range(12)]
        await asyncio.sleep(0.2)
        assert num_read == MAX_UNDER_WAY
        pipeline.gate.set()
        await asyncio.gather(*tasks)

    run(pipeline, work)
    assert num_read == 12


def test_progress_names_the_stages() -> None:
    stages: list[object] = []
    dispatchers: list[Dispatcher] = []

    def seen() -> None:
        stages.append(dispatchers[0].progress("1"))

    class Watched(Gated):
        def decode(self, request: Request) -> Request:
            if not request.is_decoded:
                seen()
            return super().decode(request)

        def predict(self, request: Request) -> Prediction:
            seen()
            return super().predict(request)

    async def work(dispatcher: Dispatcher) -> None:
        dispatchers.append(dispatcher)
        with dispatcher.admitted("1") as place:
            seen()
            await dispatcher.run(place, image(1), lambda path, prediction: seen(), dispatcher.new_path(".txt"))
        seen()

    run(Watched(), work)
    expected = [{"stage": "queued", "ahead": 0}, *({"stage": stage} for stage in ("decode", "predict", "encode")), None]
    assert stages == expected


def test_a_second_request_under_the_same_name_keeps_its_progress() -> None:
    async def work(dispatcher: Dispatcher) -> None:
        with dispatcher.admitted("1"):
            first = dispatcher.admitted("1")
            first.__enter__()
        assert dispatcher.progress("1") == {"stage": "queued", "ahead": 0}
        first.__exit__(None, None, None)
        assert dispatcher.progress("1") is None

    run(Gated(), work)


def test_the_setting_decides_how_many_predictions_are_kept() -> None:
    pipeline = Gated()

    async def work(dispatcher: Dispatcher) -> None:
        assert pipeline.kept.limit == 3
        request = Request(image=b"a", image_hash="a")
        pipeline.kept.add(request, pipeline.predict(request))
        assert pipeline.kept.find(request)

    run(pipeline, work, kept_predictions=3)
    assert pipeline.kept.find(Request(image=b"a", image_hash="a")) is None, "forgotten at the end"


def test_an_error_concerns_its_own_request_alone() -> None:
    pipeline = Gated()

    async def work(dispatcher: Dispatcher) -> None:
        pipeline.failure = PredictionError("out of memory")
        with pytest.raises(PredictionError):
            await ask(dispatcher, 1)
        pipeline.failure = None
        assert await ask(dispatcher, 2) == 2

    assert run(pipeline, work).num_admitted == 0


def test_a_service_whose_device_has_failed_refuses_requests() -> None:
    pipeline = Gated()

    async def work(dispatcher: Dispatcher) -> None:
        pipeline.failure = DeviceError("CUDA error: an illegal memory access was encountered")
        with pytest.raises(DeviceError):
            await ask(dispatcher, 1)
        assert dispatcher.state == "failed"
        with pytest.raises(BusyError, match="must be restarted"):
            await ask(dispatcher, 2)

    run(pipeline, work)


def test_a_model_that_cannot_be_loaded_is_a_failure_without_details_for_callers() -> None:
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
        assert caught.value.code == "invalid_checkpoint"
        dispatcher.close()

    asyncio.run(main())


def test_stopping_refuses_new_requests_and_finishes_those_under_way() -> None:
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


def test_closing_leaves_no_file_and_no_thread() -> None:
    folders = []

    async def work(dispatcher: Dispatcher) -> None:
        folders.append(dispatcher.new_path("").parent)
        assert await ask(dispatcher, 3) == 3

    run(Gated(), work)
    assert not folders[0].exists()
    names = {thread.name.partition("_")[0] for thread in threading.enumerate()}
    assert not names & {"decode", "device", "encode", "load"}

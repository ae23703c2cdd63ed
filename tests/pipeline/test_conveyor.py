"""The conveyor: order, overlap, limits, errors, early ends."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError

import pytest

from sharp_cog.pipeline.conveyor import Conveyor, Stage

SECONDS = 20


class Gate:
    """A stage whose items wait until the test opens it."""

    def __init__(self) -> None:
        self.seen: list[object] = []
        self.event = threading.Event()

    def __call__(self, item: object) -> object:
        self.seen.append(item)
        assert self.event.wait(SECONDS)
        return item


class Large:
    """An item whose memory a test watches."""


def same(item: object) -> object:
    return item


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def names_of_threads() -> set[str]:
    return {thread.name.partition("_")[0] for thread in threading.enumerate()}


@pytest.mark.parametrize("ordered", [True, False])
def test_all_items_pass_all_stages(ordered: bool) -> None:
    stages = (Stage(lambda item: item + 1, 2), Stage(lambda item: item * 10))
    with Conveyor[int](*stages) as conveyor:
        assert sorted(conveyor.run(range(30), max_items=4, ordered=ordered)) == [10 * (n + 1) for n in range(30)]
        assert list(conveyor.run([], max_items=4, ordered=ordered)) == []


def test_a_stage_with_one_thread_sees_the_items_in_order_behind_two_decoders() -> None:
    """The first item takes longest to decode."""
    seen: list[int] = []
    slow = threading.Event()

    def decode(item: int) -> int:
        if item == 0:
            assert slow.wait(SECONDS)
        if item == 2:
            slow.set()
        return item

    with Conveyor[int](Stage(decode, 2), Stage(seen.append)) as conveyor:
        list(conveyor.run(range(6), max_items=4))
    assert seen == [0, 1, 2, 3, 4, 5]


def test_an_unordered_run_yields_what_is_ready_first() -> None:
    first = threading.Event()

    def write(item: int) -> int:
        if item == 0:
            assert first.wait(SECONDS)
        return item

    with Conveyor[int](Stage(write, 2)) as conveyor:
        results = conveyor.run(range(2), max_items=2, ordered=False)
        assert next(results) == 1
        first.set()
        assert list(results) == [0]


def test_stages_overlap() -> None:
    """The second item is decoded while the first one is on the device, or this would wait for ever."""
    both = threading.Barrier(2, timeout=SECONDS)

    def decode(item: int) -> int:
        if item == 1:
            both.wait()
        return item

    def predict(item: int) -> int:
        if item == 0:
            both.wait()
        return item

    with Conveyor[int](Stage(decode), Stage(predict)) as conveyor:
        assert list(conveyor.run(range(2), max_items=2)) == [0, 1]


@pytest.mark.parametrize("ordered", [True, False])
def test_items_are_taken_as_there_is_room_for_them(ordered: bool) -> None:
    num_taken = 0

    def items() -> Iterator[int]:
        nonlocal num_taken
        for number in range(20):
            num_taken += 1
            yield number

    with Conveyor[int](Stage(same, 2), Stage(same)) as conveyor:
        for number, _ in enumerate(conveyor.run(items(), max_items=3, ordered=ordered), start=1):
            # Up to two more are under way, and the next one waits for room.
            assert num_taken <= number + 3


@pytest.mark.parametrize("ordered", [True, False])
def test_a_result_is_freed_as_soon_as_the_consumer_drops_it(ordered: bool) -> None:
    release = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        assert release.wait(SECONDS)

    gc.disable()
    try:
        with Conveyor[Large](Stage(same), Stage(lambda item: Large())) as conveyor:
            results = conveyor.run(items(), max_items=3, ordered=ordered)
            kept = weakref.ref(next(results))
            waiting = threading.Thread(target=lambda: list(results))
            waiting.start()
            until(lambda: kept() is None)
            release.set()
            waiting.join(SECONDS)
    finally:
        gc.enable()


def test_an_input_is_freed_once_its_stage_has_ended() -> None:
    gate = Gate()
    item = Large()
    freed = weakref.ref(item)
    with Conveyor[object](Stage(lambda item: "decoded"), Stage(gate)) as conveyor:
        conveyor.push(item)
        del item
        until(lambda: gate.seen == ["decoded"])
        until(lambda: freed() is None)
        gate.event.set()


def test_the_error_of_a_stage_is_raised_after_the_results_before_it() -> None:
    with Conveyor[float](Stage(lambda item: 1 / item)) as conveyor:
        results = conveyor.run([1, 2, 0, 4], max_items=2)
        assert [next(results), next(results)] == [1.0, 0.5]
        with pytest.raises(ZeroDivisionError):
            next(results)


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_an_error_of_the_items_is_raised(error: type[BaseException]) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise error

    with Conveyor[int](Stage(same)) as conveyor:
        results = conveyor.run(items(), max_items=2)
        assert next(results) == 1
        with pytest.raises(error):
            next(results)


@pytest.mark.parametrize("ordered", [True, False])
def test_an_item_whose_stage_raises_cancelled_error_is_left_out(ordered: bool) -> None:
    def even(item: int) -> int:
        if item % 2:
            raise CancelledError
        return item

    with Conveyor[int](Stage(even, 2), Stage(same)) as conveyor:
        assert sorted(conveyor.run(range(9), max_items=2, ordered=ordered)) == [0, 2, 4, 6, 8]


def test_an_early_end_drops_what_waits_but_finishes_what_only_has_its_last_stage_left() -> None:
    device, writer = Gate(), Gate()
    writer.event.set()
    stages = (Stage(same, 1, "decode"), Stage(device, 1, "device"), Stage(writer, 1, "encode"))
    with Conveyor[int](*stages) as conveyor:
        results = conveyor.run(iter(range(100)), max_items=4)
        consumer = threading.Thread(target=lambda: next(results))
        consumer.start()
        until(lambda: device.seen == [0])
        device.event.set()
        consumer.join(SECONDS)
        device.event.clear()
        until(lambda: len(device.seen) > 1)
        results.close()
        num_begun = len(device.seen)
        device.event.set()
    assert writer.seen == device.seen[: len(writer.seen)]
    assert len(device.seen) == len(writer.seen) == num_begun, "what was predicted is written, and nothing else"


def test_no_thread_is_left_after_an_early_end() -> None:
    with Conveyor[int](Stage(same, 2, "decode"), Stage(same, 1, "device")) as conveyor:
        results = conveyor.run(iter(range(1000)), max_items=2)
        next(results)
        results.close()
    until(lambda: not names_of_threads() & {"feed", "decode", "device"})


def test_an_item_that_is_cancelled_while_it_is_decoded_never_comes_to_the_idle_device() -> None:
    """The device's thread waits for exactly this item, so its future can no longer be cancelled."""
    decoder = Gate()
    predicted: list[object] = []
    with Conveyor[None](Stage(decoder), Stage(predicted.append), Stage(same)) as conveyor:
        ticket = conveyor.push(1)
        until(lambda: decoder.seen == [1])
        ticket.cancel()
        decoder.event.set()
        with pytest.raises(CancelledError):
            ticket.future.result(SECONDS)
    assert predicted == []


def test_a_cancelled_item_frees_its_memory_while_it_still_stands_in_the_queue() -> None:
    device = Gate()
    with Conveyor[object](Stage(lambda item: Large() if item else item), Stage(device), Stage(same)) as conveyor:
        conveyor.push(0)
        until(lambda: device.seen == [0])
        freed = []
        for _ in range(3):
            ticket = conveyor.push(1)
            until(lambda: isinstance(ticket._value, Large))  # noqa: B023
            freed.append(weakref.ref(ticket._value))
            ticket.cancel()
        assert [reference() for reference in freed] == [None] * 3
        device.event.set()


def test_a_closed_conveyor_takes_nothing() -> None:
    conveyor = Conveyor[int](Stage(same))
    conveyor.close()
    with pytest.raises(RuntimeError):
        conveyor.push(1)
    with pytest.raises(RuntimeError):
        list(conveyor.run([1], max_items=1))

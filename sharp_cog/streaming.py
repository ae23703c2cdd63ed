"""Many pictures through one pipeline: the device computes while others are read and written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, Protocol, TypeVar

from sharp_cog.errors import DeviceError, SharpError
from sharp_cog.options import PredictOptions
from sharp_cog.prediction import Decoded, Prediction

NUM_READERS, NUM_ENCODERS = 2, 2

_S = TypeVar("_S")
_T = TypeVar("_T")


class _Pipeline(Protocol):
    def decode(self, image_bytes: bytes, options: PredictOptions | None = None) -> Decoded: ...

    def predict(self, decoded: Decoded) -> Prediction: ...


def mapped(
    pipeline: _Pipeline,
    images: Iterable[bytes],
    options: PredictOptions | None,
    encode: Callable[[Prediction], Any] | None,
) -> Iterator[Any]:
    """As `sharp_cog.SharpPipeline.map`."""

    def finish(prediction: Prediction) -> Any:
        prediction = prediction.with_output(prediction.options)
        return prediction if encode is None else encode(prediction)

    with (
        closing(ahead(images, unless_wrong(lambda image: pipeline.decode(image, options)), NUM_READERS)) as decoded,
        closing(ahead(decoded, unless_wrong(pipeline.predict), 1, name="device")) as predicted,
        closing(ahead(predicted, unless_wrong(finish), NUM_ENCODERS, name="encode")) as finished,
    ):
        yield from finished


def ahead(
    items: Iterable[_S], function: Callable[[_S], _T], num_threads: int, *, name: str = "read", drops: bool = True
) -> Generator[_T, None, None]:
    """Calls a function of each item, in threads before its result is asked for.

    Args:
        items: Taken in the thread of who asks, as there are threads for them.
        function: Many threads call it at once.
        num_threads: How many; and how many items are under way while nobody asks. 0 calls it when asked, and where.
        name: Of the threads.
        drops: Whether calls that have not begun are dropped when it ends early.

    Yields:
        The results, in order.

    Raises:
        BaseException: What the function, or taking an item, raises; once calls that have begun have ended.
    """
    if not num_threads:
        yield from map(function, items)
        return
    under_way: deque[Future[_T]] = deque()
    with ThreadPoolExecutor(num_threads, thread_name_prefix=name) as executor:
        try:
            for item in items:
                under_way.append(executor.submit(function, item))
                if len(under_way) > num_threads:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way if drops else ():
                future.cancel()


def unless_wrong(function: Callable[[_S], _T]) -> Callable[[_S | SharpError], _T | SharpError]:
    """A function that returns its errors, so that the other pictures go on, and hands on those of earlier stages.

    A device that failed will not do the others either: that is raised.
    """

    def called(item: _S | SharpError) -> _T | SharpError:
        if isinstance(item, SharpError):
            return item
        try:
            return function(item)
        except DeviceError:
            raise
        except SharpError as error:
            return error

    return called

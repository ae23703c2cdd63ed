"""Many pictures through one pipeline: the device computes while others are read and written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from sharp_cog.errors import DeviceError, SharpError
from sharp_cog.options import PredictOptions
from sharp_cog.prediction import Decoded, Prediction

NUM_READERS, NUM_ENCODERS = 2, 2
NUM_UNDER_WAY = NUM_READERS + 1 + NUM_ENCODERS
"""Pictures in memory at once: being read, on the device, being encoded."""


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
    readers, device, encoders = (
        ThreadPoolExecutor(number, thread_name_prefix=name)
        for number, name in ((NUM_READERS, "read"), (1, "device"), (NUM_ENCODERS, "encode"))
    )

    def predict(decoded: Future[Decoded]) -> Prediction:
        return pipeline.predict(decoded.result())

    def finish(predicted: Future[Prediction]) -> Any:
        prediction = predicted.result()
        prediction = prediction.with_output(prediction.options)
        return prediction if encode is None else encode(prediction)

    # A thread that waits for an earlier stage waits for a picture before its own: none waits for ever.
    under_way: deque[Future[Any]] = deque()
    try:
        for image_bytes in images:
            decoded = readers.submit(pipeline.decode, image_bytes, options)
            under_way.append(encoders.submit(finish, device.submit(predict, decoded)))
            if len(under_way) >= NUM_UNDER_WAY:
                yield _outcome(under_way.popleft())
        while under_way:
            yield _outcome(under_way.popleft())
    finally:
        for executor in (readers, device, encoders):
            executor.shutdown(wait=False, cancel_futures=True)
        for executor in (readers, device, encoders):
            executor.shutdown(wait=True)


def _outcome(future: Future[Any]) -> Any:
    try:
        return future.result()
    except DeviceError:
        raise
    except SharpError as error:
        return error

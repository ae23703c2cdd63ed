"""The last predictions, kept so that the same image with another output needs no second prediction."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import fields

from sharp_cog.config.options import OutputOptions, PredictOptions
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.pipeline.request import Request

_OUTPUT_OPTIONS = {option.name for option in fields(OutputOptions)}
_PREDICTION_OPTIONS = [option.name for option in fields(PredictOptions) if option.name not in _OUTPUT_OPTIONS]
"""Names of the options that change what is predicted, and not only what is written."""


class KeptPredictions:
    """The last predictions, found by the content of image and depth and by the options that they depend on.

    For many threads at once.

    Attributes:
        limit: Number of predictions to keep.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._predictions: OrderedDict[tuple[object, ...], Prediction] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, request: Request) -> Prediction | None:
        """Return the prediction for a request with the same bytes, perhaps with other options of its output."""
        with self._lock:
            return self._predictions.get(_key(request)) if _is_known(request) else None

    def add(self, request: Request, prediction: Prediction) -> None:
        """Keep a prediction, and drop the oldest beyond the limit."""
        if not _is_known(request):
            return
        with self._lock:
            # Two threads may have predicted the same request at once; both splats are equal, and the later one stays.
            self._predictions[_key(request)] = prediction
            # A loop, as the limit may have been lowered since; a limit of 0 drops what has just been added.
            while len(self._predictions) > self.limit:
                self._predictions.popitem(last=False)

    def clear(self) -> None:
        """Drop all predictions."""
        with self._lock:
            self._predictions.clear()


def _is_known(request: Request) -> bool:
    """Return whether the bytes of image and depth were seen; pixels and estimated depth have none."""
    # A depth without a hash is not the same as no depth: the request would find the prediction without depth.
    return request.image_hash is not None and (request.depth is None or request.depth_hash is not None)


def _key(request: Request) -> tuple[object, ...]:
    options = (getattr(request.options, name) for name in _PREDICTION_OPTIONS)
    # The same bytes under another name may mean something else.
    return (request.image_hash, request.depth_hash, request.depth_name, *options)

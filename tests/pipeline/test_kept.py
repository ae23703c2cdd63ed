"""The cache of the last predictions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sharp_cog.config.options import PredictOptions
from sharp_cog.pipeline.kept import KeptPredictions
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.pipeline.request import Request
from tests.images import npy
from tests.splats import CAMERA, random_gaussians

REQUEST = Request(image=b"image", image_hash="image")


def made(num: int = 1) -> Prediction:
    return Prediction(predicted=random_gaussians(num), camera=CAMERA, options=PredictOptions())


def with_options(**options: Any) -> Request:
    return replace(REQUEST, options=PredictOptions(**options))


def test_other_options_of_the_output_find_the_prediction() -> None:
    kept, prediction = KeptPredictions(1), made()
    kept.add(REQUEST, prediction)
    for options in ({"output_format": "spz"}, {"max_gaussians": 4}, {"min_opacity": 0.5}, {"axes": "opencv"}):
        assert kept.find(with_options(**options)) is prediction


@pytest.mark.parametrize(
    "request_",
    [
        with_options(focal_length_px=5.0),
        with_options(depth_scale=2.0),
        with_options(save_internal_depth=True),
        replace(REQUEST, image_hash="other"),
        replace(REQUEST, depth=b"depth", depth_hash="depth"),
    ],
)
def test_another_image_depth_or_option_of_the_prediction_does_not(request_: Request) -> None:
    kept = KeptPredictions(1)
    kept.add(REQUEST, made())
    assert kept.find(request_) is None


@pytest.mark.parametrize("depth", [npy, np.ones((2, 2))], ids=["estimator", "array"])
def test_pixels_and_depth_without_bytes_are_never_kept(depth: Any) -> None:
    kept = KeptPredictions(1)
    for request in (replace(REQUEST, image_hash=None), replace(REQUEST, depth=depth)):
        kept.add(request, made())
        assert kept.find(request) is None
    assert kept.find(REQUEST) is None, "nor taken for the image without depth"


def test_the_oldest_predictions_are_dropped() -> None:
    kept = KeptPredictions(2)
    requests = [replace(REQUEST, image_hash=name) for name in "abc"]
    for request in requests:
        kept.add(request, made())
    assert [kept.find(request) is not None for request in requests] == [False, True, True]
    kept.clear()
    assert [kept.find(request) for request in requests] == [None] * 3


def test_a_limit_of_zero_keeps_nothing() -> None:
    kept = KeptPredictions(0)
    kept.add(REQUEST, made())
    assert kept.find(REQUEST) is None


def test_many_threads_keep_no_more_than_the_limit() -> None:
    kept, prediction = KeptPredictions(1), made()

    def work(number: int) -> None:
        request = replace(REQUEST, image_hash=str(number % 3))
        kept.add(request, prediction)
        kept.find(request)
        if number % 5 == 0:
            kept.clear()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(500)))
    kept.add(REQUEST, prediction)
    assert sum(kept.find(replace(REQUEST, image_hash=name)) is not None for name in ("0", "1", "2", "image")) == 1

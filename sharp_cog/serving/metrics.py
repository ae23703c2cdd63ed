"""What a service counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import partial

import torch
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from sharp_cog.runtime.predictor import Counters
from sharp_cog.serving.dispatch import Dispatcher

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


_COUNTED = {
    "float32_repeats": "Predictions repeated in float32, as half precision did not hold a value",
    "float32_fallbacks": "1 where float32 is used since half precision computes something else here",
    "memory_shortages": "Times that the device ran out of memory and the work was cut in smaller parts",
    "graph_failures": "1 where the network could not be captured as CUDA graphs",
    "reused_encodings": "Predictions that skipped the encoders, as their picture was the last one's",
}


def _count(dispatcher: Dispatcher, name: str) -> int:
    pipeline = dispatcher.pipeline
    count: int = 0 if pipeline is None else getattr(pipeline.counters, name)
    return count


class Metrics:
    """Counters of one service; a process may have several."""

    MEDIA_TYPE = CONTENT_TYPE_LATEST

    def __init__(self, door: str) -> None:
        self._registry = CollectorRegistry()
        self._door = door
        self._requests = Counter(
            "sharp_requests", "Predictions asked for, by how they ended", ("door", "outcome"), registry=self._registry
        )
        self._seconds = Histogram(
            "sharp_request_seconds",
            "From the request to the file",
            ("door",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._stages = Histogram(
            "sharp_stage_seconds",
            "Of each stage of a prediction",
            ("stage",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)

    def watch(self, dispatcher: Dispatcher) -> None:
        """Adds what is looked up when it is asked for: the queue and the device's memory."""
        queue = Gauge("sharp_queue_requests", "Requests waiting or under way", registry=self._registry)
        queue.set_function(lambda: dispatcher.num_admitted)
        ready = Gauge("sharp_ready", "1 once the model is loaded", registry=self._registry)
        ready.set_function(lambda: dispatcher.state == "ready")
        for field in fields(Counters):
            counted = Gauge(f"sharp_{field.name}", _COUNTED[field.name], registry=self._registry)
            counted.set_function(partial(_count, dispatcher, field.name))
        if torch.cuda.is_available():
            allocated = Gauge("sharp_gpu_allocated_bytes", "GPU memory of tensors", registry=self._registry)
            allocated.set_function(torch.cuda.memory_allocated)
            reserved = Gauge("sharp_gpu_reserved_bytes", "GPU memory that torch holds", registry=self._registry)
            reserved.set_function(torch.cuda.memory_reserved)
            peak = Gauge("sharp_gpu_peak_bytes", "Most GPU memory of tensors so far", registry=self._registry)
            peak.set_function(torch.cuda.max_memory_allocated)

    def request(self, outcome: str, seconds: float) -> None:
        """Counts a request that has ended: `ok`, `hung_up`, or an error's code."""
        self._requests.labels(self._door, outcome).inc()
        self._seconds.labels(self._door).observe(seconds)

    def stages(self, timings: Mapping[str, float]) -> None:
        """Counts the seconds of a prediction's stages."""
        for stage, seconds in timings.items():
            self._stages.labels(stage).observe(seconds)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)

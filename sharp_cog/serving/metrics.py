"""Counters of a service, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
"""Upper bounds of the histograms' buckets."""
_HELP = {
    "float32_repeats": "Predictions repeated in float32 because half precision could not hold a value",
    "float32_fallbacks": "1 if float32 is used because half precision computes wrong values on this device",
    "memory_shortages": "Times that the device ran out of memory and the work was cut into smaller parts",
    "graph_failures": "1 if the network could not be captured as CUDA graphs",
    "reused_encodings": "Predictions that skipped the encoders because they had the same image as the last one",
}
"""Help texts of `Counters`."""


class Metrics:
    """Metrics of one service; a process may have several services."""

    MEDIA_TYPE = CONTENT_TYPE_LATEST

    def __init__(self, frontend: str) -> None:
        """Create the metrics.

        Args:
            frontend: Value of the label `door`, the name that existing dashboards know.
        """
        # prometheus_client's global registry refuses a second metric of the same name in the process.
        self._registry = CollectorRegistry()
        self._frontend = frontend
        self._requests = Counter(
            "sharp_requests", "Requests for a prediction, by outcome", ("door", "outcome"), registry=self._registry
        )
        self._seconds = Histogram(
            "sharp_request_seconds",
            "Seconds from the request to the file",
            ("door",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._stages = Histogram(
            "sharp_stage_seconds",
            "Seconds of each stage of a prediction",
            ("stage",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._refusals = Counter(
            "sharp_refusals",
            "Requests and connections that were refused or ended, by reason",
            ("reason",),
            registry=self._registry,
        )
        ProcessCollector(registry=self._registry)

    def gauge(self, name: str, help_: str, value: Callable[[], float]) -> None:
        """Add a value that is looked up at each scrape."""
        Gauge(name, help_, registry=self._registry).set_function(value)

    def watch(self, dispatcher: Dispatcher) -> None:
        """Add the values that are looked up at each scrape: the queue, the counters and the device's memory."""
        self.gauge("sharp_queue_requests", "Requests waiting or under way", lambda: dispatcher.num_admitted)
        self.gauge("sharp_ready", "1 once the model is loaded", lambda: dispatcher.state == "ready")
        for field in fields(Counters):
            # Gauges, because a Counter of prometheus_client cannot be looked up at a scrape.
            self.gauge(f"sharp_{field.name}", _HELP[field.name], partial(_counter, dispatcher, field.name))
        if torch.cuda.is_available():
            self.gauge("sharp_gpu_allocated_bytes", "GPU memory of tensors", torch.cuda.memory_allocated)
            self.gauge("sharp_gpu_reserved_bytes", "GPU memory that torch holds", torch.cuda.memory_reserved)
            self.gauge("sharp_gpu_peak_bytes", "Most GPU memory of tensors so far", torch.cuda.max_memory_allocated)

    def request(self, outcome: str, seconds: float) -> None:
        """Count a request that has ended.

        Args:
            outcome: `ok`, `hung_up`, or an error's code.
            seconds: Seconds that the request took.
        """
        self._requests.labels(self._frontend, outcome).inc()
        self._seconds.labels(self._frontend).observe(seconds)

    def refused(self, reason: str) -> None:
        """Count a refusal.

        Args:
            reason: `queue`, `uploads`, `fetches`, `disk`, `loading`, `stopping` or `failed` for a request that was
                refused; `body` for one that is too large; `slow_upload` and `slow_answer` for one that was ended;
                `connections`, `idle_connection` and `headers` for a connection.
        """
        self._refusals.labels(reason).inc()

    def stages(self, timings: Mapping[str, float]) -> None:
        """Count the seconds of a prediction's stages."""
        for stage, seconds in timings.items():
            self._stages.labels(stage).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)


def _counter(dispatcher: Dispatcher, name: str) -> int:
    pipeline = dispatcher.pipeline
    # A scrape may come before the model is loaded.
    count: int = 0 if pipeline is None else getattr(pipeline.counters, name)
    return count

"""Metrics of a service in the text format of Prometheus."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

from sharp_cog.runtime.predictor import Counters
from sharp_cog.serving.metrics import Metrics


def lines_of(metrics: Metrics) -> list[str]:
    return metrics.text().decode().splitlines()


def test_requests_and_stages_are_counted_by_frontend() -> None:
    metrics = Metrics("http")
    metrics.request("ok", 0.05)
    metrics.request("invalid_image", 5.0)
    metrics.stages({"network": 0.2, "write": 0.1})
    lines = lines_of(metrics)
    assert 'sharp_requests_total{door="http",outcome="ok"} 1.0' in lines
    assert 'sharp_requests_total{door="http",outcome="invalid_image"} 1.0' in lines
    assert 'sharp_request_seconds_count{door="http"} 2.0' in lines
    assert 'sharp_request_seconds_bucket{door="http",le="0.1"} 1.0' in lines
    assert 'sharp_stage_seconds_sum{stage="network"} 0.2' in lines
    assert not [line for line in lines_of(Metrics("other")) if "_total{" in line], "each service has its own"


def test_the_queue_and_all_counters_are_looked_up_at_each_scrape() -> None:
    dispatcher: Any = SimpleNamespace(num_admitted=3, state="loading", pipeline=None)
    metrics = Metrics("http")
    metrics.watch(dispatcher)
    assert {"sharp_queue_requests 3.0", "sharp_ready 0.0", "sharp_memory_shortages 0.0"} <= set(lines_of(metrics))
    counters = Counters(**{counter.name: number for number, counter in enumerate(fields(Counters), start=1)})
    dispatcher.pipeline, dispatcher.state = SimpleNamespace(counters=counters), "ready"
    lines = lines_of(metrics)
    assert "sharp_ready 1.0" in lines
    for counter in fields(Counters):
        assert f"sharp_{counter.name} {getattr(counters, counter.name)}.0" in lines

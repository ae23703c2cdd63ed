"""Load on the HTTP service: many clients, each answer held against the pipeline's own.

    scripts/benchmark --serve
    scripts/benchmark --serve --requests 1000 --clients 32

The service runs as `sharp-cog serve --http --model lift` in a process of its own. Every request has a picture and
options of its own, and the right answer is known from a pipeline in this process. It prints the latencies, and the
service's memory after each tenth of the requests.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import requests
from PIL import Image

from sharp_cog.config.options import PredictOptions
from sharp_cog.config.settings import Settings
from sharp_cog.formats import FORMATS
from sharp_cog.pipeline.pipeline import SharpPipeline
from tests.e2e.http_server import started_http_server

NUM_PICTURES = 6
FORMATS_ASKED = ("ply", "spz", "splat", "sog", "compressed_ply")


@dataclass
class Report:
    """What came of a load.

    Attributes:
        num_lost: Requests without an answer, or refused for another reason than a full queue.
        num_wrong: Answers that were not the right bytes.
        num_busy: Refusals because the queue was full; each was asked again.
        seconds: Of every request that was answered, those of a full queue included.
        total_s: From first to last.
        memory: Bytes of the service after each tenth, where they are asked for.
    """

    num_lost: int = 0
    num_wrong: int = 0
    num_busy: int = 0
    seconds: list[float] = field(default_factory=list)
    total_s: float = 0.0
    memory: list[int] = field(default_factory=list)


def picture(number: int) -> tuple[bytes, bytes]:
    """A photograph of its own and its depth map: sizes differ, as do the formats."""
    width, height = 160 + 16 * number, 120 + 8 * (number % 3)
    coarse = np.random.default_rng(number).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    image, depth = io.BytesIO(), io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(image, ("PNG", "JPEG")[number % 2])
    np.save(depth, np.linspace(1 + number / 4, 6, width * height, dtype=np.float32).reshape(height, width))
    return image.getvalue(), depth.getvalue()


def drive(
    url: str,
    *,
    num_requests: int,
    num_clients: int,
    num_pictures: int = NUM_PICTURES,
    measure: Callable[[], int] | None = None,
) -> Report:
    """Sends requests from many clients at once and checks every answer.

    Args:
        url: Of a service with the model `lift`.
        num_requests: In all.
        num_clients: At once.
        num_pictures: Different ones.
        measure: Tells the memory of the service.
    """
    pictures = [picture(number) for number in range(num_pictures)]
    expected = right_answers(pictures)
    report, lock, order = Report(), threading.Lock(), itertools.count()

    def client() -> None:
        with requests.Session() as session:
            while (number := next(order)) < num_requests:
                which, format_name = number % num_pictures, FORMATS_ASKED[number % len(FORMATS_ASKED)]
                image, depth = pictures[which]
                start = time.perf_counter()
                outcome = "busy"
                while outcome == "busy":
                    outcome = ask(session, f"{url}/predict/{format_name}", image, depth, expected[which, format_name])
                    with lock:
                        report.num_busy += outcome == "busy"
                    if outcome == "busy":
                        time.sleep(0.2)
                with lock:
                    report.num_lost += outcome == "lost"
                    report.num_wrong += outcome == "wrong"
                    report.seconds.append(time.perf_counter() - start)
                    if measure is not None and len(report.seconds) % max(1, num_requests // 10) == 0:
                        report.memory.append(measure())

    start = time.perf_counter()
    with ThreadPoolExecutor(num_clients) as clients:
        for task in [clients.submit(client) for _ in range(num_clients)]:
            task.result()
    report.total_s = time.perf_counter() - start
    return report


def ask(session: requests.Session, url: str, image: bytes, depth: bytes, digest: str) -> str:
    """One request: `right`, `wrong`, `busy` or `lost`."""
    try:
        files, form = {"file": image, "depth": depth}, {"depth_format": "metric"}
        answer = session.post(url, files=files, data=form, timeout=600)
    except requests.RequestException:
        return "lost"
    if answer.status_code == 503 and answer.json()["code"] == "busy":
        return "busy"
    if answer.status_code != 200:
        return "lost"
    return "right" if hashlib.sha256(answer.content).hexdigest() == digest else "wrong"


def right_answers(pictures: list[tuple[bytes, bytes]]) -> dict[tuple[int, str], str]:
    """The hash of every splat that can be asked for, by picture and format."""
    pipeline = SharpPipeline.load(Settings(model="lift", device="cpu"))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (image, depth) in enumerate(pictures):
            prediction = pipeline(image, PredictOptions(depth_format="metric"), depth_bytes=depth)
            for name in FORMATS_ASKED:
                path = Path(folder) / f"splat{FORMATS[name].suffix}"
                content = prediction.with_output(PredictOptions(output_format=name)).write(path).read_bytes()
                found[number, name] = hashlib.sha256(content).hexdigest()
    return found


def table(report: Report, num_clients: int) -> str:
    """The report for people."""
    quantiles = np.quantile(report.seconds, (0.5, 0.9, 0.99, 1.0))
    lines = [
        f"{len(report.seconds)} requests from {num_clients} clients in {report.total_s:.1f} s: "
        f"{len(report.seconds) / report.total_s:.2f} a second",
        f"lost {report.num_lost}, wrong {report.num_wrong}, asked again because the queue was full {report.num_busy}",
        "latency s: median {:.2f}, 90 % {:.2f}, 99 % {:.2f}, most {:.2f}".format(*quantiles),
        "memory MB after each tenth: " + ", ".join(f"{bytes_ / 1e6:.0f}" for bytes_ in report.memory),
    ]
    return "\n".join(lines)


def main() -> int:
    """Starts the service, drives it, prints the table; exits with 1 if an answer was lost or wrong."""
    parser = argparse.ArgumentParser(description="Load on the HTTP service, with every answer checked.")
    parser.add_argument("--serve", action="store_true", help="this benchmark, as scripts/benchmark calls it")
    parser.add_argument("--requests", type=int, default=200, metavar="N", help="default: 200")
    parser.add_argument("--clients", type=int, default=16, metavar="N", help="at once (default: 16)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        started_http_server(Path(folder), "--model", "lift") as server,
    ):
        server.wait_until_ready()
        process = psutil.Process(server.process.pid)
        report = drive(
            server.url,
            num_requests=arguments.requests,
            num_clients=arguments.clients,
            measure=lambda: process.memory_info().rss,
        )
    print(table(report, arguments.clients))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(vars(report), indent=2) + "\n", encoding="utf-8")
    return 1 if report.num_lost or report.num_wrong else 0


if __name__ == "__main__":
    sys.exit(main())

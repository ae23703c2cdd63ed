"""Load on the HTTP service from many clients, with each answer compared with the pipeline's own.

    scripts/benchmark --serve
    scripts/benchmark --serve --requests 1000 --clients 32

The service runs as `sharp-cog serve --http --model lift` in its own process. A pipeline in this process knows the right
answer to every request. The benchmark prints the latencies, and the service's memory after each tenth of the requests.
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

NUM_IMAGES = 6
FORMATS_ASKED = ("ply", "spz", "splat", "sog", "compressed_ply")


@dataclass
class Report:
    """Report of a load.

    Attributes:
        num_lost: Number of requests without an answer, or refused for another reason than a full queue.
        num_wrong: Number of answers with wrong bytes.
        num_busy: Number of refusals because the queue was full; each of these requests was sent again.
        seconds: Seconds of every request, with its repeats.
        total_s: Seconds from the first request to the last.
        memory: Bytes of the service's memory after each tenth, if they are measured.
    """

    num_lost: int = 0
    num_wrong: int = 0
    num_busy: int = 0
    seconds: list[float] = field(default_factory=list)
    total_s: float = 0.0
    memory: list[int] = field(default_factory=list)


def image_and_depth(number: int) -> tuple[bytes, bytes]:
    """Return an image and its depth map; sizes and formats differ by number."""
    width, height = 160 + 16 * number, 120 + 8 * (number % 3)
    coarse = np.random.default_rng(number).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    image, depth = io.BytesIO(), io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(image, ("PNG", "JPEG")[number % 2])
    # Ground, whose disparity is linear in the pixels. Other numbers would not be recognised as metres.
    disparity = np.linspace(1 / (6 + number), 1 / (1 + number / 4), width * height).reshape(height, width)
    np.save(depth, (1 / disparity).astype(np.float32))
    return image.getvalue(), depth.getvalue()


def drive(
    url: str,
    *,
    num_requests: int,
    num_clients: int,
    num_images: int = NUM_IMAGES,
    measure: Callable[[], int] | None = None,
) -> Report:
    """Send requests from many clients at once, and check every answer.

    Args:
        url: URL of a service with the model `lift`.
        num_requests: Number of requests in all.
        num_clients: Number of clients at once.
        num_images: Number of different images.
        measure: Returns the memory of the service.
    """
    images = [image_and_depth(number) for number in range(num_images)]
    expected = right_answers(images)
    report, lock, order = Report(), threading.Lock(), itertools.count()

    def client() -> None:
        with requests.Session() as session:
            while (number := next(order)) < num_requests:
                which, format_name = number % num_images, FORMATS_ASKED[number % len(FORMATS_ASKED)]
                image, depth = images[which]
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
    """Send one request and return `right`, `wrong`, `busy` or `lost`."""
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


def right_answers(images: list[tuple[bytes, bytes]]) -> dict[tuple[int, str], str]:
    """Return the hash of every splat, by image and format."""
    pipeline = SharpPipeline.load(Settings(model="lift", device="cpu"))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (image, depth) in enumerate(images):
            prediction = pipeline(image, PredictOptions(depth_format="metric"), depth=depth)
            for name in FORMATS_ASKED:
                path = Path(folder) / f"splat{FORMATS[name].suffix}"
                content = prediction.with_options(PredictOptions(output_format=name)).write(path).read_bytes()
                found[number, name] = hashlib.sha256(content).hexdigest()
    return found


def table(report: Report, num_clients: int) -> str:
    """Return the report for people."""
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
    """Start the service, drive it and print the table. The exit code is 1 if an answer was lost or wrong."""
    parser = argparse.ArgumentParser(description="Load on the HTTP service, with every answer checked.")
    parser.add_argument("--serve", action="store_true", help="this benchmark, as scripts/benchmark calls it")
    parser.add_argument("--requests", type=int, default=200, metavar="N", help="requests in all (default: 200)")
    parser.add_argument("--clients", type=int, default=16, metavar="N", help="clients at once (default: 16)")
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

"""Time and peak memory of each stage of a prediction, on any device.

    scripts/benchmark --model lift
    scripts/benchmark --model sharp --image photo.jpg --repeat 10 --json stages.json
    scripts/benchmark --model random        # SHARP's speed without its checkpoint: random weights of the same sizes

Stages run one after the other in one process, the same as in a prediction, and the device is synchronized before and
after each. Memory is the process's largest resident set during a stage, mapped weights included, and on CUDA the
largest allocation of torch.
"""

from __future__ import annotations

import argparse
import datetime
import io
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sharp_cog import __version__
from sharp_cog.config.settings import MODELS, Settings
from sharp_cog.errors import SharpError
from sharp_cog.model.config import SharpConfig
from sharp_cog.model.sharp import Sharp
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.pipeline.request import Request
from sharp_cog.runtime.device import find_device
from sharp_cog.runtime.precision import choose
from sharp_cog.runtime.runner import SharpRunner
from sharp_cog.runtime.weights import Weights

RANDOM_MODELS = {"random": SharpConfig.released, "random-tiny": SharpConfig.tiny}
"""Models with random weights, by name. Their splats are noise, but their speed is that of the real model."""

WIDTH, HEIGHT = 4032, 3024
"""Size in pixels of the synthetic image: 12 MP, as from a phone."""


class MeasuredPipeline(SharpPipeline):
    """The pipeline, which also measures the peak memory of each stage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.peaks: dict[str, dict[str, int]] = defaultdict(lambda: {"rss": 0, "device": 0})

    def decode(self, request: Request) -> Request:
        with self.weighed("decode"):
            return super().decode(request)

    @contextmanager
    def _timed(self, stage: str, timings: dict[str, float]) -> Iterator[None]:
        with self.weighed(stage), super()._timed(stage, timings):
            yield

    @contextmanager
    def weighed(self, stage: str) -> Iterator[None]:
        """Record the largest resident set, and the largest allocation on a CUDA device, during the block."""
        reset_peak_rss()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        yield
        peak = self.peaks[stage]
        peak["rss"] = max(peak["rss"], peak_rss())
        if self.device.type == "cuda":
            peak["device"] = max(peak["device"], torch.cuda.max_memory_allocated(self.device))


def reset_peak_rss() -> bool:
    """Reset the largest resident set, if the system supports it (Linux); return whether it does."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def peak_rss() -> int:
    """Return the largest resident set in bytes since the last reset, or since the start where there is no reset."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        # In bytes on macOS, in units of 1024 bytes elsewhere.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def load(model: str, device: str | None) -> MeasuredPipeline:
    """Load a model by name, or one with random weights."""
    settings = Settings.from_environment()
    if device is not None:
        settings = replace(settings, device=device)
    if model not in RANDOM_MODELS:
        return MeasuredPipeline.load(replace(settings, model=model, keep_encoding=False))  # type: ignore[return-value]
    torch.manual_seed(0)
    found = find_device(settings.device)
    source = Weights(state=Sharp(RANDOM_MODELS[model]()).state_dict(), is_folded=False)
    runner = SharpRunner(
        source,
        device=found,
        dtype=choose(settings.precision, found),
        keeps_encoding=False,
        uses_graphs=settings.cuda_graphs,
    )
    return MeasuredPipeline(runner, device=found, settings=settings)


def import_seconds() -> float:
    """Return the seconds that a new interpreter takes to import the pipeline."""
    module = "sharp_cog.pipeline.pipeline"
    program = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(result.stdout)


def synthetic_image(seed: int = 0) -> bytes:
    """Return a JPEG of smooth noise, which compresses about as well as a photograph."""
    coarse = np.random.default_rng(seed).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(file, "JPEG", quality=92)
    return file.getvalue()


def synthetic_depth() -> bytes:
    """Return a depth map for any 4:3 image: a slope from 4 m at the top to 1 m at the bottom."""
    file = io.BytesIO()
    np.save(file, np.repeat(1 / np.linspace(1 / 4, 1, 768, dtype=np.float32)[:, None], 1024, axis=1))
    return file.getvalue()


def measure(
    pipeline: MeasuredPipeline, image_bytes: bytes, depth_bytes: bytes | None, *, repeat: int
) -> tuple[dict[str, list[float]], float]:
    """Predict and write `repeat` times, after a first run that does not count.

    Returns:
        Seconds of each stage in each run, and seconds of the first run.
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    first_s = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for run in range(repeat + 1):
            if run == 1:
                pipeline.peaks.clear()
            prediction = pipeline(image_bytes, depth_bytes=depth_bytes)
            with pipeline.weighed("write"):
                prediction.write(Path(folder) / "splat.ply")
            total_s = sum(prediction.timings.values())
            if run == 0:
                first_s = total_s
                continue
            for stage, stage_s in {**prediction.timings, "total": total_s}.items():
                seconds[stage].append(stage_s)
    peaks = list(pipeline.peaks.values())
    pipeline.peaks["total"] = {kind: max(peak[kind] for peak in peaks) for kind in ("rss", "device")}
    return dict(seconds), first_s


def device_name(device: torch.device) -> str:
    """Return the manufacturer's name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(report: dict[str, Any]) -> str:
    """Format the report as text."""
    lines = [
        f"{report['model']} on {report['device']} ({report['device_name']}), torch {report['torch']}, "
        f"{report['num_threads']} threads of {report['num_cpus']} CPUs, "
        f"sharp_cog {report['sharp_cog']}, {report['date']}",
        f"import {report['import_s']:.2f} s, load {report['load_s']:.2f} s, "
        f"first prediction {report['first_s']:.2f} s, then {report['repeat']}:",
        "",
        f"{'stage':<12} {'median s':>9} {'least s':>9} {'most s':>9} {'RSS MB':>9} {'device MB':>10}",
    ]
    for name, stage in report["stages"].items():
        device_mb = f"{stage['peak_device_bytes'] / 1e6:10.0f}" if report["device"].startswith("cuda") else f"{'-':>10}"
        lines.append(
            f"{name:<12} {stage['median_s']:9.4f} {min(stage['all_s']):9.4f} {max(stage['all_s']):9.4f} "
            f"{stage['peak_rss_bytes'] / 1e6:9.0f} {device_mb}"
        )
    if not report["rss_is_per_stage"]:
        lines.append("RSS is the largest since the start: this system cannot reset it")
    if report["model"] in RANDOM_MODELS:
        lines.append("the weights are random: the splats are noise, only time and memory are meaningful")
    return "\n".join(lines)


def main() -> int:
    """Measure, print a table, and write JSON on request."""
    parser = argparse.ArgumentParser(description="Time and peak memory of each stage of a prediction.")
    parser.add_argument("--model", choices=[*MODELS, *RANDOM_MODELS], default="sharp", help="default: sharp")
    parser.add_argument("--image", type=Path, metavar="FILE", help="an image (default: a synthetic one of 12 MP)")
    parser.add_argument(
        "--depth", type=Path, metavar="FILE", help="a depth map (default: a synthetic one, for lift alone)"
    )
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="predictions that count (default: 5)")
    parser.add_argument("--device", metavar="DEVICE", help="default: SHARP_DEVICE, else the fastest device")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    args = parser.parse_args()
    if args.repeat < 1:
        parser.error(f"--repeat is {args.repeat}: give at least 1")
    if args.model == "lift" and args.image is not None and args.depth is None:
        parser.error("lift needs a depth map for your image: give --depth FILE")
    try:
        report = run(args.model, args.image, args.depth, repeat=args.repeat, device=args.device)
    except SharpError as error:
        hint = "; or measure --model random, which needs none" if error.code.startswith("checkpoint") else ""
        print(f"error: {error}{hint} [{error.code}]", file=sys.stderr)
        return 1
    print(table(report))
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def run(model: str, image: Path | None, depth: Path | None, *, repeat: int, device: str | None) -> dict[str, Any]:
    """Load the model, measure, and return the content of the table and the JSON."""
    image_bytes = synthetic_image() if image is None else image.read_bytes()
    depth_bytes = depth.read_bytes() if depth is not None else synthetic_depth() if model == "lift" else None
    start = time.perf_counter()
    pipeline = load(model, device)
    load_s = time.perf_counter() - start
    seconds, first_s = measure(pipeline, image_bytes, depth_bytes, repeat=repeat)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "sharp_cog": __version__,
        "model": model,
        "device": str(pipeline.device),
        "device_name": device_name(pipeline.device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "num_threads": torch.get_num_threads(),
        "num_cpus": os.cpu_count(),
        "image": "synthetic, 4032x3024" if image is None else image.name,
        "image_bytes": len(image_bytes),
        "repeat": repeat,
        "import_s": import_seconds(),
        "load_s": load_s,
        "first_s": first_s,
        "rss_is_per_stage": reset_peak_rss(),
        "stages": {
            stage: {
                "median_s": statistics.median(all_s),
                "all_s": all_s,
                "peak_rss_bytes": pipeline.peaks[stage]["rss"],
                "peak_device_bytes": pipeline.peaks[stage]["device"],
            }
            for stage, all_s in seconds.items()
        },
    }


if __name__ == "__main__":
    sys.exit(main())

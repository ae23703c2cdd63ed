"""Many images through `SharpPipeline.map` to files, and the share of time in which the device is idle.

    scripts/benchmark --stream
    scripts/benchmark --stream --model random --device cuda --num 200 --json stream.json

The images are eight JPEGs of 12 MP in turn. The device counts as busy from the first copy of an image to the end of its
unprojection, and as idle for the rest of the measured time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.stages import RANDOM_MODELS, device_name, load, synthetic_image
from sharp_cog import Prediction, PredictOptions
from sharp_cog.errors import SharpError
from sharp_cog.pipeline.request import Request

_NUM_UNCOUNTED = 6
"""Images before the measurement, until reading, predicting and writing all overlap."""

_ON_DEVICE = ("preprocess", "network", "unproject")
"""Stages that run on the device."""

_NUM_IMAGES = 8
"""Different images."""


def run(model: str, device: str | None, *, num: int, output_format: str) -> dict[str, Any]:
    """Map images to files, and return the report.

    Raises:
        SharpError: The model cannot be loaded, or a prediction fails.
    """
    options = PredictOptions(output_format=output_format)
    contents = [synthetic_image(seed) for seed in range(_NUM_IMAGES)]
    pipeline = load(model, device)
    pipeline.warm_up()
    predict = pipeline.predict
    ends: list[float] = []
    busy_s: list[float] = []

    def timed(request: Request) -> Prediction:
        prediction = predict(request)
        ends.append(time.perf_counter())
        busy_s.append(sum(prediction.timings[stage] for stage in _ON_DEVICE))
        return prediction

    setattr(pipeline, "predict", timed)  # noqa: B010 - replaces the method of this object alone
    with tempfile.TemporaryDirectory() as folder:

        def encode(prediction: Prediction) -> None:
            with tempfile.NamedTemporaryFile(dir=folder, suffix=".ply") as file:
                prediction.write(file.name)

        images = (contents[number % _NUM_IMAGES] for number in range(_NUM_UNCOUNTED + num))
        for outcome in pipeline.map(images, options, encode=encode):
            if isinstance(outcome, SharpError):
                raise outcome
    wall_s, total_busy_s = ends[-1] - ends[_NUM_UNCOUNTED - 1], sum(busy_s[_NUM_UNCOUNTED:])
    return {
        "model": model,
        "device": str(pipeline.device),
        "device_name": device_name(pipeline.device),
        "format": output_format,
        "num": num,
        "wall_s": wall_s,
        "busy_s": total_busy_s,
        "pictures_per_s": num / wall_s,
        "idle_share": 1.0 - total_busy_s / wall_s,
    }


def main() -> int:
    """Measure, print a line, and write JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--model", choices=["sharp", *RANDOM_MODELS], default="sharp", help="default: sharp")
    parser.add_argument("--device", metavar="DEVICE", help="default: SHARP_DEVICE, else the fastest device")
    parser.add_argument("--num", type=int, default=50, metavar="N", help="images that count (default: 50)")
    parser.add_argument("--format", default="ply", help="format of the files (default: ply)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    args = parser.parse_args()
    if args.num < 1:
        parser.error(f"--num is {args.num}: give at least 1")
    try:
        report = run(args.model, args.device, num=args.num, output_format=args.format)
    except SharpError as error:
        print(f"error: {error} [{error.code}]", file=sys.stderr)
        return 1
    print(
        f"{report['model']} on {report['device']} ({report['device_name']}): {report['num']} images of 12 MP to "
        f".{report['format']} in {report['wall_s']:.2f} s, {report['pictures_per_s']:.2f} a second; the device is idle "
        f"for {report['idle_share']:.1%} of it"
    )
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

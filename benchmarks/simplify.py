"""Likeness of simplified splats to the whole one, and seconds; beside splat-transform's decimation where it is given.

python -m benchmarks.simplify [--splat FILE] [--share 50 25 10 2] [--splat-transform PATH]

Without a file, the example by `lift`, and the same with a network's noise.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.formats import EXAMPLES, roughened
from sharp_cog import PredictOptions, Settings, SharpPipeline, formats
from sharp_cog.config.options import OutputOptions
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.simplify import simplify
from sharp_cog.preview.metrics import psnr, ssim
from sharp_cog.preview.path import looking_at_focus
from sharp_cog.preview.render import coverage, render
from sharp_cog.preview.view import View

ASIDE_M = (0.0, 0.1, 0.3)
"""Distances of the views from the photograph's camera, to the right."""
FOCUS_M = 4.0
"""Depth of the point that all views look at."""

Way = Callable[[Gaussians, int], tuple[Gaussians, float]]
"""Returns a number of Gaussians in place of all, and the seconds that it took."""


def ours(gaussians: Gaussians, num: int) -> tuple[Gaussians, float]:
    start = time.process_time()
    found = simplify(gaussians, max_gaussians=num)
    return found, time.process_time() - start


def by_splat_transform(program: str) -> Way:
    def way(gaussians: Gaussians, num: int) -> tuple[Gaussians, float]:
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "whole.ply", Path(folder) / "few.ply"
            formats.write(source, gaussians, None, OutputOptions())
            start = time.perf_counter()
            command = [program, "--quiet", "--gpu", "cpu", str(source), "--decimate", str(num), str(target)]
            subprocess.run(command, check=True)
            return formats.read(target).gaussians, time.perf_counter() - start

    return way


def views_of(camera: Camera) -> list[View]:
    photograph = View.of_photograph(camera, width=camera.width)
    return [photograph.moved(looking_at_focus(np.array([aside, 0.0, 0.0]), FOCUS_M)) for aside in ASIDE_M]


def likeness(gaussians: Gaussians, view: View, image: NDArray[np.uint8], covered: NDArray[np.float32]) -> str:
    """Return PSNR and SSIM, and the coverage relative to the whole splat's where that covers a pixel."""
    found = render(gaussians, view)[0]
    inside = covered > 0.5
    share = (coverage(gaussians, view)[inside] / covered[inside]).mean()
    return f"{psnr(found, image):6.2f} dB {ssim(found, image):.4f} {share:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splat", type=Path, nargs="+", default=[])
    parser.add_argument("--share", type=float, nargs="+", default=[50, 25, 10, 2], help="per cent")
    parser.add_argument("--splat-transform", metavar="PATH", help="also measure this program")
    arguments = parser.parse_args()
    scenes = {path.name: formats.read(path) for path in arguments.splat}
    splats = {
        name: (splat.gaussians, splat.camera or Camera(width=960, height=640, focal_length_px=700.0))
        for name, splat in scenes.items()
    }
    if not splats:
        pipeline = SharpPipeline.load(Settings(model="lift", device="cpu"))
        prediction = pipeline(EXAMPLES / "room.jpg", PredictOptions(), depth=EXAMPLES / "room.depth.png")
        splats["example"] = (prediction.gaussians, prediction.camera)
        splats["roughened"] = (roughened(prediction.gaussians), prediction.camera)
    ways: dict[str, Way] = {"sharp_cog": ours}
    if arguments.splat_transform:
        ways["splat-transform"] = by_splat_transform(arguments.splat_transform)
    for name, (gaussians, camera) in splats.items():
        views = views_of(camera)
        whole = [(render(gaussians, view)[0], coverage(gaussians, view)) for view in views]
        print(f"{name}: {len(gaussians):,} Gaussians; PSNR, SSIM and relative coverage {ASIDE_M} m aside")
        for share in arguments.share:
            num = max(1, round(len(gaussians) * share / 100))
            for label, way in ways.items():
                found, seconds = way(gaussians, num)
                measured = (likeness(found, view, *truth) for view, truth in zip(views, whole, strict=True))
                print(f"{share:5g} % {label:<16}{seconds:7.1f} s  " + "  ".join(measured), flush=True)


if __name__ == "__main__":
    main()

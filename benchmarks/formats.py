"""Times the writing of every format: the 1,179,648 Gaussians of the example, and the same with a network's noise.

python -m benchmarks.formats [--repeat 5] [--format NAME ...]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from sharp_cog import PredictOptions, Settings, SharpPipeline, formats
from sharp_cog.config.options import OutputOptions
from sharp_cog.errors import NotInstalledError
from sharp_cog.formats import CODECS
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.quaternions import canonicalize

EXAMPLES = Path(__file__).parents[1] / "examples"


def roughened(gaussians: Gaussians) -> Gaussians:
    """Add noise to all fields, so that nothing compresses better than in a prediction of SHARP."""
    generator = torch.Generator().manual_seed(0)

    def noise(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    num = len(gaussians)
    quaternions = torch.nn.functional.normalize(gaussians.quaternions_wxyz + 0.2 * noise(num, 4), dim=-1)
    return replace(
        gaussians,
        means=gaussians.means * (1 + 0.01 * noise(num, 1)),
        scales=gaussians.scales * (0.5 * noise(num, 3)).exp(),
        quaternions_wxyz=canonicalize(quaternions),
        colors_linear=(gaussians.colors_linear * (1 + 0.1 * noise(num, 3))).clamp(0, 1),
        opacities=torch.sigmoid(1.5 * noise(num) + 1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--format", nargs="+", choices=CODECS, default=[*CODECS])
    arguments = parser.parse_args()
    pipeline = SharpPipeline.load(Settings(model="lift", device="cpu"))
    prediction = pipeline(EXAMPLES / "room.jpg", PredictOptions(), depth=EXAMPLES / "room.depth.png")
    print(f"{len(prediction.gaussians):,} Gaussians, {torch.get_num_threads()} threads, median of {arguments.repeat}")
    scenes = {"example": prediction.gaussians, "roughened": roughened(prediction.gaussians)}
    print(f"{'':<16}" + "".join(f"{name:>24}" for name in scenes))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "splat"
        for name in arguments.format:
            line = f"{name:<16}"
            for gaussians in scenes.values():
                try:
                    times = [seconds(path, prediction.camera, gaussians, name) for _ in range(arguments.repeat)]
                except NotInstalledError as error:
                    line += f"  {error}"
                    break
                line += f"{statistics.median(times):>12.2f} s{path.stat().st_size / 1e6:>7.1f} MB"
            print(line)


def seconds(path: Path, camera: Camera, gaussians: Gaussians, name: str) -> float:
    start = time.perf_counter()
    formats.write(path, gaussians, camera, OutputOptions(output_format=name))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

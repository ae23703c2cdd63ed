"""Time of the decomposition of stretched Gaussians, and of Apple's way: a float64 SVD of their covariances.

python -m benchmarks.unproject [--num 1179648] [--repeat 5]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from sharp_cog.runtime.kernels.decompose import decompose

STRETCH = (0.52, 0.35, 1.0)


def covariance_svd(
    quaternions_wxyz: torch.Tensor,
    scales: torch.Tensor,
    stretch: tuple[float, float, float] = STRETCH,
    *,
    stays_on_device: bool = False,
) -> torch.Tensor:
    """Return scales (N, 3) from the covariances, in float64 on the CPU, or in float32 on the device of the tensors."""
    w, x, y, z = torch.nn.functional.normalize(quaternions_wxyz, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    factor = torch.stack([torch.stack(row, -1) for row in rows], -2) * scales.unsqueeze(-2)
    factor = scales.new_tensor(stretch).unsqueeze(-1) * factor
    covariances = factor @ factor.transpose(-1, -2)
    _, variances, _ = torch.linalg.svd(covariances if stays_on_device else covariances.cpu().double())
    deviations: torch.Tensor = variances.clamp(min=0).sqrt()
    return deviations


def seconds(function: Callable[[], object], repeat: int) -> float:
    """Return the median seconds of a call, after a first call that does not count."""
    function()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=2 * 768 * 768)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    quaternions = torch.randn(arguments.num, 4, generator=generator)
    scales = 10 ** (torch.rand(arguments.num, 3, generator=generator) * 3 - 4)
    ours = seconds(lambda: decompose(quaternions, scales, STRETCH), arguments.repeat)
    theirs = seconds(lambda: covariance_svd(quaternions, scales), 1)
    print(f"{arguments.num:,} Gaussians, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"one-sided Jacobi in float32     {ours:8.3f} s")
    print(f"SVD of covariances in float64   {theirs:8.3f} s   {theirs / ours:.1f} x")


if __name__ == "__main__":
    main()

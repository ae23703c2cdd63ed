"""How often `--depth-format auto` is right, asks, or turns a scene inside out, over traced scenes.

    python -m benchmarks.depth_evidence

Each scene is written in all kinds of maps, without a name that tells, with three amounts of noise and with the soft
edges of networks. "Right" has the order of the true depth, and in metres also its scale.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from sharp_cog.depth.maps import from_array
from sharp_cog.errors import DepthError
from sharp_cog.geometry.camera import Camera
from sharp_cog.model.external_depth import rank_correlation
from tests.depth.scenes import OTHER_SCENES, SCENES, disparity_kinds, metric_kinds, noisy, relative_kinds

NOISES = (0.0, 0.005, 0.02)
BLURS = (0, 2)


def softened(depth: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    """Return the depth with its disparity averaged over squares, as networks smooth edges."""
    if not radius:
        return depth
    disparity = np.pad(1 / depth, radius, mode="edge")
    side = 2 * radius + 1
    windows = np.lib.stride_tricks.sliding_window_view(disparity, (side, side))
    mean: NDArray[np.float64] = windows.mean(axis=(2, 3))
    with np.errstate(divide="ignore"):
        soft: NDArray[np.float64] = 1 / mean
    return soft


def outcome(values: NDArray[np.generic], true_m: NDArray[np.float64], *, is_metric: bool) -> str:
    """Return `right`, `refused`, `inverted` or `wrong scale`."""
    height, width = values.shape
    camera = Camera(width=width, height=height, focal_length_px=150.0)
    try:
        depth_map = from_array(values, camera)
    except DepthError:
        return "refused"
    known = np.isfinite(true_m) & np.isfinite(depth_map.depth_m)
    found, expected = depth_map.depth_m[known].astype(np.float64), true_m[known]
    if rank_correlation(found, expected) <= 0:
        return "inverted"
    is_scaled = abs(np.median(found) / np.median(expected) - 1) < 0.1
    return "right" if depth_map.is_metric == is_metric and (is_scaled or not is_metric) else "wrong scale"


def main() -> int:
    logging.disable(logging.CRITICAL)
    outcomes = ("right", "refused", "inverted", "wrong scale")
    num_inverted = 0
    for title, scenes in (("first scenes", SCENES), ("other scenes", OTHER_SCENES)):
        counts: dict[str, Counter[str]] = {}
        for scene in scenes.values():
            for noise in NOISES:
                for blur in BLURS:
                    true_m = noisy(softened(scene(), blur), noise)
                    groups = ((metric_kinds, True), (disparity_kinds, False), (relative_kinds, False))
                    for kinds, is_metric in groups:
                        for kind, values in kinds(true_m):
                            found = outcome(values, true_m, is_metric=is_metric)
                            counts.setdefault(kind, Counter())[found] += 1
        print(f"\n{title}: {len(scenes)}\n\n| kind | {' | '.join(outcomes)} |\n| --- | {'--- | ' * len(outcomes)}")
        for kind, count in counts.items():
            print(f"| {kind} | {' | '.join(str(count[each]) for each in outcomes)} |")
        total = sum(counts.values(), Counter[str]())
        num_inverted += total["inverted"]
        print(f"| all | {' | '.join(str(total[each]) for each in outcomes)} |")
    return int(num_inverted > 0)


if __name__ == "__main__":
    sys.exit(main())

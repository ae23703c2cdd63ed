"""Depth of a stereo pair by semi-global matching."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sharp_cog.depth.stereo import depth_from_pair


def texture(width: int, height: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(2).integers(0, 256, (height // 3, width // 3, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("of_left", [True, False])
def test_a_box_before_a_wall_has_its_depth_in_either_image(of_left: bool) -> None:
    """Disparities of 8 and 24 px are 2.5 and 0.83 m, by 250 px times 80 mm."""
    wall, box = texture(420, 240), texture(80, 80)
    left, right = wall[:, :320].copy(), wall[:, 8:328].copy()
    left[80:160, 120:200], right[80:160, 96:176] = box, box
    depth_m = depth_from_pair(left, right, focal_length_px=250, baseline_m=0.08, of_left=of_left)
    start = 120 if of_left else 96
    np.testing.assert_allclose(np.nanmedian(depth_m[90:150, start + 10 : start + 70]), 250 * 0.08 / 24, rtol=0.03)
    np.testing.assert_allclose(np.nanmedian(depth_m[180:]), 250 * 0.08 / 8, rtol=0.03)


def test_a_large_pair_is_matched_smaller_and_keeps_its_metres() -> None:
    wall = texture(2200, 600)
    depth_m = depth_from_pair(wall[:, :2048], wall[:, 40:2088], focal_length_px=2000, baseline_m=0.06)
    assert depth_m.shape == (300, 1024)
    np.testing.assert_allclose(np.nanmedian(depth_m), 3.0, rtol=0.02)

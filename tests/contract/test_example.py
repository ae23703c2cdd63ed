"""The example picture and its depth map: that they belong together, and that the depth is exact."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from examples import make_room
from sharp_cog.depth import maps
from sharp_cog.imaging import images

EXAMPLES = Path(__file__).parents[2] / "examples"
FOCAL_PX = 28 * math.hypot(1200, 800) / math.hypot(36, 24)


@pytest.fixture(scope="module")
def depth_mm() -> NDArray[np.uint16]:
    return np.asarray(Image.open(EXAMPLES / "room.depth.png"))


def test_picture_and_depth_map_belong_together(depth_mm: NDArray[np.uint16]) -> None:
    source = images.decode((EXAMPLES / "room.jpg").read_bytes())
    assert source.camera.focal_length_source == "exif_35mm"
    assert source.camera.focal_length_px == pytest.approx(FOCAL_PX)
    assert depth_mm.dtype == np.uint16
    assert depth_mm.shape == source.rgb.shape[:2] == (800, 1200)
    assert depth_mm.min() > 0
    decoded = maps.decode((EXAMPLES / "room.depth.png").read_bytes(), source.camera)
    np.testing.assert_allclose(decoded.depth_m, depth_mm / 1000, rtol=1e-6)


@pytest.mark.parametrize(
    ("column", "row", "depth_m"),
    [
        (100, 770, 1.15 * FOCAL_PX / (770.5 - 400)),  # The floor is 1.15 m below the camera.
        (400, 5, 1.45 * FOCAL_PX / (400 - 5.5)),  # The ceiling is 1.45 m above it.
        (1190, 300, 2.3 * FOCAL_PX / (1190.5 - 600)),  # The right wall is 2.3 m to the side.
        (600, 150, 5.2),  # The back wall.
    ],
)
def test_depth_is_what_the_pinhole_says(depth_mm: NDArray[np.uint16], column: int, row: int, depth_m: float) -> None:
    assert depth_mm[row, column] == pytest.approx(1000 * depth_m, abs=0.51)


def test_the_script_gives_the_committed_depth(depth_mm: NDArray[np.uint16]) -> None:
    small = 1000 * make_room.render_depth(60, 40)
    # A small pixel's centre lies between four of the large ones.
    blocks = depth_mm.reshape(40, 20, 60, 20)[:, 9:11, :, 9:11].astype(float)
    nearest, farthest = blocks.min(axis=(1, 3)), blocks.max(axis=(1, 3))
    assert ((small > nearest - 1) & (small < farthest + 1)).mean() > 0.99

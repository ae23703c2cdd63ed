from __future__ import annotations

import numpy as np
import pytest

from sharp_cog.geometry.camera import Camera
from sharp_cog.preview.view import View


@pytest.mark.parametrize(
    ("width", "height", "wanted", "size"),
    [
        (1200, 800, 768, (768, 512)),
        (1200, 800, 97, (96, 64)),
        (1000, 333, 100, (100, 34)),
        (4000, 3, 16, (16, 2)),
        (3, 4000, 1, (2, 2666)),
    ],
)
def test_the_photographs_view_keeps_the_aspect_ratio_with_even_sides(
    width: int, height: int, wanted: int, size: tuple[int, int]
) -> None:
    camera = Camera(width=width, height=height, focal_length_px=width * 0.75)
    view = View.of_photograph(camera, width=wanted)
    assert (view.width, view.height) == size
    assert view.focal_length_px == pytest.approx(0.75 * view.width)
    np.testing.assert_array_equal(view.world_to_camera, np.eye(4))


def test_a_moved_view_differs_in_its_pose_alone() -> None:
    view, pose = View(width=30, height=20, focal_length_px=25.0), np.diag([1.0, 2.0, 3.0, 1.0])
    moved = view.moved(pose)
    assert (moved.width, moved.height, moved.focal_length_px) == (30, 20, 25.0)
    np.testing.assert_array_equal(moved.world_to_camera, pose)
    np.testing.assert_array_equal(view.world_to_camera, np.eye(4))


def test_a_pose_is_a_4x4_matrix() -> None:
    with pytest.raises(ValueError, match=r"world_to_camera has shape \(3, 4\), expected \(4, 4\)"):
        View(width=30, height=20, focal_length_px=25.0, world_to_camera=np.eye(4)[:3])

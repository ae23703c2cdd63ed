from __future__ import annotations

import numpy as np
import pytest

from sharp_cog.preview.path import PATHS, camera_path, looking_at_focus
from tests.preview.scenes import CAMERA


def positions_of(poses: np.ndarray) -> np.ndarray:
    """Return the positions of the cameras (N, 3)."""
    return np.array([-pose[:3, :3].T @ pose[:3, 3] for pose in poses])


@pytest.mark.parametrize("kind", PATHS)
def test_paths_keep_the_focus_in_the_centre_and_the_camera_upright(kind: str) -> None:
    poses = camera_path(kind, num_frames=16, camera=CAMERA, near_m=1.0, focus_m=3.0, camera_range=0.08)
    assert poses.shape == (16, 4, 4)
    for pose in poses:
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
        assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
        focus = pose @ np.array([0, 0, 3.0, 1])
        assert focus[2] > 0
        np.testing.assert_allclose(focus[:2], 0, atol=1e-12)
        assert pose[0, 1] == pytest.approx(0)  # The camera's x axis stays level.
    # At 1 m, a step of this length is 8 % of the image's diagonal.
    side_m = 0.08 * np.hypot(96, 64) / 80
    assert np.abs(positions_of(poses)[:, :2]).max() == pytest.approx(side_m, rel=0.05)


def test_paths_have_the_directions_of_their_names() -> None:
    moves = {
        kind: np.ptp(
            positions_of(camera_path(kind, num_frames=32, camera=CAMERA, near_m=1.0, focus_m=3.0, camera_range=0.08)),
            axis=0,
        )
        > 1e-6
        for kind in PATHS
    }
    assert moves["swipe"].tolist() == [True, False, False]
    assert moves["shake"].tolist() == [True, True, False]
    assert moves["rotate"].tolist() == [True, True, False]
    assert moves["rotate_forward"].tolist() == [True, False, True]


@pytest.mark.parametrize("kind", ["shake", "rotate", "rotate_forward"])
def test_loops_close_one_step_after_the_last_frame(kind: str) -> None:
    positions = positions_of(
        camera_path(kind, num_frames=64, camera=CAMERA, near_m=1.0, focus_m=3.0, camera_range=0.08)
    )
    steps = np.linalg.norm(np.diff(positions, axis=0, append=positions[:1]), axis=1)
    assert 0 < steps[-1] <= 1.01 * steps.max()


def test_a_range_of_zero_is_the_photographs_own_view() -> None:
    poses = camera_path("rotate", num_frames=3, camera=CAMERA, near_m=1.0, focus_m=3.0, camera_range=0.0)
    np.testing.assert_allclose(poses, np.broadcast_to(np.eye(4), (3, 4, 4)), atol=1e-12)


def test_unknown_paths_are_refused() -> None:
    with pytest.raises(ValueError, match="path is 'spiral': choose one of swipe, shake, rotate, rotate_forward"):
        camera_path("spiral", num_frames=3, camera=CAMERA, near_m=1.0, focus_m=3.0, camera_range=0.1)


def test_a_camera_beside_the_axis_turns_towards_the_focus() -> None:
    pose = looking_at_focus(np.array([1.0, 0.0, 0.0]), 1.0)
    np.testing.assert_allclose(pose @ [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, np.sqrt(2), 1.0], atol=1e-12)

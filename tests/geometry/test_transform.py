"""Scaling, moving and rotating a scene, against numpy and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.harmonics import basis
from sharp_cog.geometry.transform import (
    change_axes,
    concatenate,
    depths_ahead,
    opencv_to_opengl,
    place,
    scale_and_center,
    share_ahead,
    translate,
)
from tests.splats import gaussians_in_front, with_harmonics


def test_a_scene_is_scaled_about_the_camera_and_then_centred() -> None:
    gaussians = gaussians_in_front(501)
    transformed, camera_position = scale_and_center(gaussians, scale=2.5, is_centred=True)
    middle = np.median(gaussians.means.numpy() * 2.5, axis=0)
    np.testing.assert_allclose(transformed.means, gaussians.means.numpy() * 2.5 - middle, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(transformed.scales, gaussians.scales.numpy() * 2.5, rtol=1e-6)
    np.testing.assert_allclose(camera_position, -middle, rtol=1e-6)
    np.testing.assert_allclose(
        translate(transformed, tuple(middle.tolist())).means, gaussians.means * 2.5, rtol=1e-5, atol=1e-5
    )


def test_a_scene_that_needs_no_change_is_returned_as_it_is() -> None:
    gaussians = gaussians_in_front(5)
    assert scale_and_center(gaussians) == (gaussians, (0.0, 0.0, 0.0))
    assert translate(gaussians, (0.0, 0.0, 0.0)) is gaussians
    assert len(scale_and_center(gaussians_in_front(0), is_centred=True)[0]) == 0


def test_opengl_axes_are_scipys_rotation_about_x_and_its_own_inverse() -> None:
    gaussians = gaussians_in_front(100)
    rotated = opencv_to_opengl(gaussians)
    half_turn = Rotation.from_euler("x", 180, degrees=True)
    np.testing.assert_allclose(rotated.means, half_turn.apply(gaussians.means.numpy()), atol=1e-5)
    before = Rotation.from_quat(gaussians.quaternions_wxyz.double().numpy(), scalar_first=True)
    after = Rotation.from_quat(rotated.quaternions_wxyz.double().numpy(), scalar_first=True)
    np.testing.assert_allclose(after.as_matrix(), (half_turn * before).as_matrix(), atol=1e-6)
    assert (rotated.quaternions_wxyz[:, 0] >= 0).all()
    back = opencv_to_opengl(rotated)
    torch.testing.assert_close(back.means, gaussians.means)


def test_scales_and_offsets_leave_the_harmonics() -> None:
    gaussians = with_harmonics(gaussians_in_front(9), 2)
    moved, _ = scale_and_center(gaussians, scale=3.0, is_centred=True)
    assert moved.harmonics is gaussians.harmonics
    turned = opencv_to_opengl(gaussians)
    assert turned.harmonics is not None
    assert gaussians.harmonics is not None
    # x, y, z become x, -y, -z, and degree 1 is -y, z, -x.
    torch.testing.assert_close(
        turned.harmonics[:, :3], gaussians.harmonics[:, :3] * torch.tensor([[-1.0], [-1.0], [1.0]])
    )


@pytest.mark.parametrize(
    "matrix",
    [[[1, 0, 0], [0, 0, -1], [0, 1, 0]], [[1, 0, 0], [0, 1, 0], [0, 0, -1]], [[-1, 0, 0], [0, 0, 1], [0, 1, 0]]],
    ids=["quarter turn", "mirrored", "mirrored and turned"],
)
def test_new_axes_have_scipys_covariances_and_the_same_colours(matrix: list[list[float]]) -> None:
    mapping = np.array(matrix, dtype=float)
    gaussians = with_harmonics(gaussians_in_front(50), 3)
    changed = change_axes(gaussians, mapping)
    np.testing.assert_allclose(changed.means, gaussians.means.numpy() @ mapping.T, atol=1e-6)
    np.testing.assert_allclose(covariances(changed), mapping @ covariances(gaussians) @ mapping.T, atol=1e-9)
    assert (changed.quaternions_wxyz[:, 0] >= 0).all()
    unit = torch.nn.functional.normalize(gaussians.means, dim=1)
    assert gaussians.harmonics is not None
    assert changed.harmonics is not None
    before = torch.einsum("nk,nkc->nc", basis(unit, 3), gaussians.harmonics)
    after = torch.einsum("nk,nkc->nc", basis(unit @ torch.tensor(matrix).float().T, 3), changed.harmonics)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)


def covariances(gaussians: Gaussians) -> np.ndarray:
    rotations = Rotation.from_quat(gaussians.quaternions_wxyz.double().numpy(), scalar_first=True).as_matrix()
    factors: np.ndarray = rotations * gaussians.scales.double().numpy()[:, None, :]
    products: np.ndarray = factors @ factors.transpose(0, 2, 1)
    return products


def test_the_share_ahead_counts_positive_depths() -> None:
    gaussians = gaussians_in_front(4)
    assert share_ahead(gaussians) == 1.0
    gaussians.means[0, 2] = -1.0
    assert share_ahead(gaussians) == 0.75
    assert share_ahead(gaussians_in_front(0)) == 0.0


def test_quantiles_of_depth_leave_out_gaussians_behind_the_camera() -> None:
    gaussians = gaussians_in_front(101)
    gaussians.means[:, 2] = torch.linspace(-50, 50, 101)
    assert depths_ahead(gaussians, 0.0, 0.5, 1.0) == [1.0, 25.5, 50.0]
    gaussians.means[:, 2] = -1.0
    assert depths_ahead(gaussians, 0.1, 0.9) == [1.0, 1.0]
    assert depths_ahead(gaussians_in_front(0), 0.5) == [1.0]


def test_a_placed_scene_is_rotated_scaled_and_moved_as_by_scipy() -> None:
    gaussians = gaussians_in_front(100)
    turn = Rotation.from_euler("xyz", [10, -120, 45], degrees=True)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = 2.5 * turn.as_matrix(), [1, 2, 3]
    placed = place(gaussians, matrix)
    np.testing.assert_allclose(placed.means, 2.5 * turn.apply(gaussians.means.double()) + [1, 2, 3], atol=1e-4)
    np.testing.assert_allclose(placed.scales, 2.5 * gaussians.scales, rtol=1e-6)
    before = Rotation.from_quat(gaussians.quaternions_wxyz.double().numpy(), scalar_first=True)
    after = Rotation.from_quat(placed.quaternions_wxyz.double().numpy(), scalar_first=True)
    assert (after.inv() * (turn * before)).magnitude().max() < 1e-5
    assert (placed.quaternions_wxyz[:, 0] >= 0).all()


@pytest.mark.parametrize("diagonal", [[1, 1, -1, 1], [1, 2, 1, 1], [0, 0, 0, 1], [1, 1, 1.001, 1]])
def test_maps_that_change_shapes_are_refused(diagonal: list[float]) -> None:
    with pytest.raises(ValueError, match="mirrors, shears or scales"):
        place(gaussians_in_front(1), np.diag(diagonal))


def test_scenes_are_concatenated_in_order() -> None:
    first, second = gaussians_in_front(3), gaussians_in_front(5)
    both = concatenate([first, second])
    assert torch.equal(both.means, torch.cat([first.means, second.means]))
    assert torch.equal(both.opacities, torch.cat([first.opacities, second.opacities]))
    assert concatenate([first]) is first
    assert len(concatenate([])) == 0

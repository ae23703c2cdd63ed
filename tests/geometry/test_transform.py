"""Keeping and placing Gaussians, against numerical integration, scipy and brute force."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.simplify import EVEN_FACTOR, contribution, prune
from sharp_cog.geometry.transform import depths_ahead, moved, opencv_to_opengl, place
from tests.splats import random_gaussians


def in_front(num: int) -> Gaussians:
    gaussians = random_gaussians(num)
    gaussians.means[:, 2].abs_().add_(1.0)
    gaussians.scales.clamp_(1e-3, 1e-2)
    return gaussians


def test_contribution_is_opacity_times_the_projected_ellipses_area() -> None:
    """The area by the Jacobian of the projection, in float64, which the formula never forms."""
    gaussians = in_front(200)
    means = gaussians.means.double().numpy()
    axes = Rotation.from_quat(gaussians.quaternions_wxyz.double().numpy(), scalar_first=True).as_matrix()
    factors = axes * gaussians.scales.double().numpy()[:, None, :]
    areas = np.empty(len(means))
    for i, (x, y, z) in enumerate(means):
        jacobian = np.array([[1 / z, 0, -x / z**2], [0, 1 / z, -y / z**2]])
        flat = jacobian @ factors[i]
        areas[i] = np.sqrt(np.linalg.det(flat @ flat.T))
    expected = areas * gaussians.opacities.double().numpy()
    np.testing.assert_allclose(contribution(gaussians), expected, rtol=1e-4)


def test_what_is_behind_the_camera_contributes_nothing() -> None:
    gaussians = in_front(3)
    gaussians.means[1, 2] *= -1
    assert contribution(gaussians)[1] == 0


def kept_of(gaussians: Gaussians, kept: Gaussians) -> np.ndarray:
    """Which were kept, (N,), told by their positions, which must come in their order."""
    rows = {tuple(mean): index for index, mean in enumerate(gaussians.means.tolist())}
    indices = [rows[tuple(mean)] for mean in kept.means.tolist()]
    assert indices == sorted(indices)
    assert torch.equal(kept.colors_linear, gaussians.colors_linear[indices])
    return np.isin(np.arange(len(gaussians)), indices)


def test_the_strongest_are_kept_in_their_order() -> None:
    gaussians = in_front(500)
    gaussians.scales.mul_(10 ** (2 * torch.rand(500, 1, generator=torch.Generator().manual_seed(3))))
    kept = prune(gaussians, max_gaussians=100)
    is_kept, strength = kept_of(gaussians, kept), contribution(gaussians).numpy()
    assert is_kept.sum() == 100
    assert strength[~is_kept].max() <= EVEN_FACTOR * strength[is_kept].min() * 1.0001
    strongest = np.argsort(-strength)[:100]
    assert is_kept[strongest].mean() > 0.85


def test_what_is_alike_is_thinned_out_evenly() -> None:
    """A wall seen straight ahead: every piece of it keeps its half."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    wall = in_front(64 * 64)
    wall.means[:] = torch.stack([columns, rows, torch.full_like(rows, 4.0)], dim=-1).reshape(-1, 3)
    wall.scales[:] = 0.01
    wall.opacities[:] = 0.5
    is_kept = kept_of(wall, prune(wall, max_gaussians=64 * 64 // 2))
    shares = is_kept.reshape(8, 8, 8, 8).mean(axis=(1, 3))
    assert shares.min() > 0.35
    assert shares.max() < 0.65


def test_limits_that_do_not_bind_change_nothing() -> None:
    gaussians = in_front(50)
    assert prune(gaussians) is gaussians
    assert torch.equal(prune(gaussians, max_gaussians=50).means, gaussians.means)
    assert len(prune(gaussians, max_gaussians=0)) == 0
    assert len(prune(in_front(0), max_gaussians=5)) == 0


def test_min_opacity() -> None:
    gaussians = in_front(500)
    kept = prune(gaussians, min_opacity=0.3, max_gaussians=400)
    assert kept.opacities.min() >= 0.3
    assert len(kept) == min(400, int((gaussians.opacities >= 0.3).sum()))


def test_scale_and_centre() -> None:
    gaussians = in_front(501)
    placed, camera_position = place(gaussians, scale=2.5, is_centred=True)
    middle = np.median(gaussians.means.numpy() * 2.5, axis=0)
    np.testing.assert_allclose(placed.means, gaussians.means.numpy() * 2.5 - middle, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(placed.scales, gaussians.scales.numpy() * 2.5, rtol=1e-6)
    np.testing.assert_allclose(camera_position, -middle, rtol=1e-6)
    np.testing.assert_allclose(moved(placed, tuple(middle.tolist())).means, gaussians.means * 2.5, rtol=1e-5, atol=1e-5)


def test_what_is_not_asked_for_is_not_done() -> None:
    gaussians = in_front(5)
    assert place(gaussians) == (gaussians, (0.0, 0.0, 0.0))
    assert moved(gaussians, (0.0, 0.0, 0.0)) is gaussians
    assert len(place(in_front(0), is_centred=True)[0]) == 0


def test_turning_about_x_is_scipys_rotation_and_its_own_inverse() -> None:
    gaussians = in_front(100)
    turned = opencv_to_opengl(gaussians)
    half_turn = Rotation.from_euler("x", 180, degrees=True)
    np.testing.assert_allclose(turned.means, half_turn.apply(gaussians.means.numpy()), atol=1e-5)
    before = Rotation.from_quat(gaussians.quaternions_wxyz.double().numpy(), scalar_first=True)
    after = Rotation.from_quat(turned.quaternions_wxyz.double().numpy(), scalar_first=True)
    np.testing.assert_allclose(after.as_matrix(), (half_turn * before).as_matrix(), atol=1e-6)
    assert (turned.quaternions_wxyz[:, 0] >= 0).all()
    back = opencv_to_opengl(turned)
    torch.testing.assert_close(back.means, gaussians.means)


def test_depths_are_of_what_lies_ahead() -> None:
    gaussians = in_front(101)
    gaussians.means[:, 2] = torch.linspace(-50, 50, 101)
    assert depths_ahead(gaussians, 0.0, 0.5, 1.0) == [1.0, 25.5, 50.0]
    gaussians.means[:, 2] = -1.0
    assert depths_ahead(gaussians, 0.1, 0.9) == [1.0, 1.0]
    assert depths_ahead(in_front(0), 0.5) == [1.0]

"""Pruning a scene, against numerical integration and brute force."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.simplify import EVEN_FACTOR, contribution, prune
from tests.splats import gaussians_in_front


def test_contribution_is_opacity_times_the_projected_ellipses_area() -> None:
    """The area is computed by the Jacobian of the projection in float64, which the formula does not use."""
    gaussians = gaussians_in_front(200)
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


def test_gaussians_behind_the_camera_contribute_nothing() -> None:
    gaussians = gaussians_in_front(3)
    gaussians.means[1, 2] *= -1
    assert contribution(gaussians)[1] == 0


def kept_of(gaussians: Gaussians, kept: Gaussians) -> np.ndarray:
    """Return which Gaussians were kept, (N,), recognised by their positions; check that they keep their order."""
    rows = {tuple(mean): index for index, mean in enumerate(gaussians.means.tolist())}
    indices = [rows[tuple(mean)] for mean in kept.means.tolist()]
    assert indices == sorted(indices)
    assert torch.equal(kept.colors_linear, gaussians.colors_linear[indices])
    return np.isin(np.arange(len(gaussians)), indices)


def test_the_strongest_gaussians_are_kept_in_their_order() -> None:
    gaussians = gaussians_in_front(500)
    gaussians.scales.mul_(10 ** (2 * torch.rand(500, 1, generator=torch.Generator().manual_seed(3))))
    kept = prune(gaussians, max_gaussians=100)
    is_kept, strength = kept_of(gaussians, kept), contribution(gaussians).numpy()
    assert is_kept.sum() == 100
    assert strength[~is_kept].max() <= EVEN_FACTOR * strength[is_kept].min() * 1.0001
    strongest = np.argsort(-strength)[:100]
    assert is_kept[strongest].mean() > 0.85


def test_equal_gaussians_are_thinned_out_evenly() -> None:
    """Every part of a wall that is seen head-on keeps half of its Gaussians."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    wall = gaussians_in_front(64 * 64)
    wall.means[:] = torch.stack([columns, rows, torch.full_like(rows, 4.0)], dim=-1).reshape(-1, 3)
    wall.scales[:] = 0.01
    wall.opacities[:] = 0.5
    is_kept = kept_of(wall, prune(wall, max_gaussians=64 * 64 // 2))
    shares = is_kept.reshape(8, 8, 8, 8).mean(axis=(1, 3))
    assert shares.min() > 0.35
    assert shares.max() < 0.65


def test_limits_that_do_not_bind_change_nothing() -> None:
    gaussians = gaussians_in_front(50)
    assert prune(gaussians) is gaussians
    assert torch.equal(prune(gaussians, max_gaussians=50).means, gaussians.means)
    assert len(prune(gaussians, max_gaussians=0)) == 0
    assert len(prune(gaussians_in_front(0), max_gaussians=5)) == 0


def test_gaussians_below_the_least_opacity_are_dropped() -> None:
    gaussians = gaussians_in_front(500)
    kept = prune(gaussians, min_opacity=0.3, max_gaussians=400)
    assert kept.opacities.min() >= 0.3
    assert len(kept) == min(400, int((gaussians.opacities >= 0.3).sum()))

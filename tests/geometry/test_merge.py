"""Merging Gaussians, against moments in float64, numerical integrals and renderings of the whole scene."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial.transform import Rotation

from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.merge import merge
from sharp_cog.preview.metrics import psnr
from sharp_cog.preview.rasterize import rasterize
from sharp_cog.preview.view import View
from tests.splats import CAMERA, extreme_gaussians, gaussians_in_front, random_gaussians

VIEW = View.of_photograph(CAMERA, width=240)


def covariances(gaussians: Gaussians) -> NDArray[np.float64]:
    axes = Rotation.from_quat(gaussians.quaternions_wxyz.double().numpy(), scalar_first=True).as_matrix()
    factors = axes * gaussians.scales.double().numpy()[:, None, :]
    result: NDArray[np.float64] = factors @ factors.transpose(0, 2, 1)
    return result


def areas(gaussians: Gaussians) -> NDArray[np.float64]:
    """Return the roots of the sums of the squared products of two deviations."""
    a, b, c = gaussians.scales.double().numpy().T
    result: NDArray[np.float64] = np.sqrt((a * b) ** 2 + (b * c) ** 2 + (a * c) ** 2)
    return result


def wall(side: int = 64, opacity: float = 0.5) -> Gaussians:
    """Return a wall with a smooth picture, side x side flat Gaussians that cover it, 4 m away and 2 m wide.

    It recedes a little, since at equal depth the order of the Gaussians would decide what is in front.
    """
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    num = side * side
    wave = [0.5 + 0.4 * torch.sin(3 * columns + phase) * torch.cos(4 * rows) for phase in (0.0, 1.0, 2.0)]
    return Gaussians(
        means=torch.stack([columns, rows, 4.0 + 0.02 * columns + 0.01 * rows], dim=-1).reshape(-1, 3),
        scales=torch.tensor([3.0, 3.0, 0.3]).mul(1 / side).expand(num, 3).clone(),
        quaternions_wxyz=torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(num, 4).clone(),
        colors_linear=torch.stack(wave, dim=-1).reshape(-1, 3),
        opacities=torch.full((num,), opacity),
    )


def with_harmonics(gaussians: Gaussians, num_bands: int = 15) -> Gaussians:
    generator = torch.Generator().manual_seed(1)
    return replace(gaussians, harmonics=torch.randn(len(gaussians), num_bands, 3, generator=generator))


def as_set(gaussians: Gaussians) -> list[bytes]:
    """Return the bytes of each Gaussian, sorted."""
    fields = [tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None] for tensor in gaussians.tensors().values()]
    return sorted(row.tobytes() for row in torch.cat(fields, dim=1).numpy())


def test_a_pair_merges_to_its_moments() -> None:
    """Mean, covariance and colour are those of the mixture, weighted by opacity times area."""
    pair = replace(gaussians_in_front(2), opacities=torch.tensor([0.1, 0.3]))
    pair.means[1] = pair.means[0] + 2e-3
    merged = merge(with_harmonics(pair), 1)
    weights = pair.opacities.double().numpy() * areas(pair)
    weights /= weights.sum()
    means = pair.means.double().numpy()
    mean = weights @ means
    offsets = means - mean
    covariance = np.einsum("i,ijk->jk", weights, covariances(pair) + offsets[:, :, None] * offsets[:, None, :])
    np.testing.assert_allclose(merged.means[0], mean, rtol=1e-6)
    np.testing.assert_allclose(covariances(merged)[0], covariance, rtol=1e-3, atol=1e-4 * np.trace(covariance))
    np.testing.assert_allclose(merged.colors_linear[0], weights @ pair.colors_linear.double().numpy(), rtol=1e-5)
    harmonics = with_harmonics(pair).harmonics
    assert harmonics is not None
    assert merged.harmonics is not None
    expected = np.einsum("i,ikc->kc", weights, harmonics.double().numpy())
    np.testing.assert_allclose(merged.harmonics[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("distance", "opacity"),
    [(0.0, 0.2), (1.0, 0.2), (3.0, 0.2), (0.0, 0.5), (1.0, 0.6), (2.0, 0.6), (1.0, 1.0), (2.0, 1.0), (3.0, 1.0)],
)
def test_a_merged_pair_covers_the_area_that_the_pair_covered(distance: float, opacity: float) -> None:
    """The covered area is integrated numerically, over a plane that the flat Gaussians lie in."""
    x, y = np.meshgrid(np.linspace(-12, 12, 801), np.linspace(-12, 12, 801))
    through = np.ones_like(x)
    for centre in (-distance / 2, distance / 2):
        through *= 1 - opacity * np.exp(-0.5 * ((x - centre) ** 2 + y**2))
    covered = (1 - through).sum() * (24 / 800) ** 2
    pair = Gaussians(
        means=torch.tensor([[-distance / 2, 0, 5.0], [distance / 2, 0, 5.0]]),
        scales=torch.tensor([[1.0, 1.0, 1e-3]]).repeat(2, 1),
        quaternions_wxyz=torch.tensor([[1.0, 0, 0, 0]]).repeat(2, 1),
        colors_linear=torch.full((2, 3), 0.5),
        opacities=torch.full((2,), opacity),
    )
    merged = merge(pair, 1)
    assert 2 * np.pi * areas(merged)[0] * float(merged.opacities[0]) == pytest.approx(covered, rel=0.06)


@pytest.mark.parametrize(("share", "decibels", "coverage"), [(2, 48.0, 0.999), (4, 40.0, 0.998), (20, 30.0, 0.98)])
def test_a_merged_wall_looks_like_the_whole_one(share: int, decibels: float, coverage: float) -> None:
    """Its outer edge is left out: merged Gaussians are wider, so that they reach beyond it."""
    whole = wall()
    merged = merge(whole, len(whole) // share)
    assert len(merged) == len(whole) // share
    expected, found = rasterize(whole, VIEW), rasterize(merged, VIEW)
    inside = binary_erosion(expected.alpha > 0.99, iterations=5)
    assert (found.alpha[inside] / expected.alpha[inside]).mean() > coverage
    assert psnr(found.rgb[inside], expected.rgb[inside]) > decibels


def test_few_gaussians_leave_no_hole() -> None:
    whole = wall(128)
    expected, found = rasterize(whole, VIEW), rasterize(merge(whole, len(whole) // 50), VIEW)
    inside = binary_erosion(expected.alpha > 0.99, iterations=5)
    assert (found.alpha[inside] / expected.alpha[inside]).mean() > 0.965
    assert found.alpha[inside].min() > 0.85


def test_gaussians_that_stand_alone_stay_as_they_are() -> None:
    """A dense wall merges first, and single Gaussians far from each other are not touched."""
    dense, alone = wall(), gaussians_in_front(20)
    alone.means[:] = torch.randn(20, 3, generator=torch.Generator().manual_seed(2)) * 2 + torch.tensor([0, 0, 12.0])
    both = Gaussians(**{name: torch.cat([tensor, alone.tensors()[name]]) for name, tensor in dense.tensors().items()})
    merged = merge(both, 500)
    assert set(as_set(alone)) <= set(as_set(merged))


def test_an_edge_in_depth_keeps_its_two_sides() -> None:
    """No merged Gaussian floats between a wall and one of the same colours behind it."""
    front, back = wall(32), wall(32)
    back.means[:, 2] += 1.0
    both = Gaussians(**{name: torch.cat([tensor, back.tensors()[name]]) for name, tensor in front.tensors().items()})
    depth = merge(both, 100).means[:, 2]
    assert torch.minimum((depth - 4).abs(), (depth - 5).abs()).max() < 0.05


def test_the_edge_of_two_colors_stays_sharper_than_flat_parts() -> None:
    scene = wall()
    is_left = scene.means[:, 0] < 0
    scene.colors_linear[:] = torch.where(is_left[:, None], 0.9, 0.05)
    merged = merge(scene, len(scene) // 10)
    assert ((merged.colors_linear > 0.85) | (merged.colors_linear < 0.06)).all()


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_the_result_does_not_depend_on_the_number_of_threads(num_threads: int) -> None:
    scene = with_harmonics(random_gaussians(70_001), 3)
    expected = as_set(merge(scene, 35_000))
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        assert as_set(merge(scene, 35_000)) == expected
    finally:
        torch.set_num_threads(before)


def test_the_result_does_not_depend_on_the_order_of_the_input() -> None:
    scene = with_harmonics(random_gaussians(5000))
    doubled = scene.map(lambda tensor: tensor.repeat(2, *[1] * (tensor.dim() - 1)))
    permutation = torch.randperm(10_000, generator=torch.Generator().manual_seed(3))
    assert as_set(merge(doubled, 1000)) == as_set(merge(doubled.map(lambda tensor: tensor[permutation]), 1000))


@pytest.mark.parametrize("offset", [(0.0, 0.0, 0.0), (0.0, 0.0, -50.0), (1e4, -1e4, 3.0)])
def test_a_scene_is_merged_anywhere(offset: tuple[float, float, float]) -> None:
    scene = random_gaussians(2000)
    moved = replace(scene, means=scene.means + torch.tensor(offset))
    merged = merge(moved, 300)
    assert len(merged) == 300
    low, high = moved.means.min(dim=0).values, moved.means.max(dim=0).values
    assert ((merged.means >= low - 1e-2) & (merged.means <= high + 1e-2)).all()


@pytest.mark.parametrize(
    "scene",
    [
        extreme_gaussians(),
        random_gaussians(1000).map(lambda tensor: tensor[:1].repeat(500, *[1] * (tensor.dim() - 1))),
        replace(random_gaussians(500), scales=torch.zeros(500, 3)),
        replace(random_gaussians(500), opacities=torch.zeros(500)),
        replace(random_gaussians(500), means=torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * 1e18),
        replace(random_gaussians(500), means=10 ** (torch.rand(500, 3) * 40 - 20)),
        replace(random_gaussians(500), scales=10 ** (torch.rand(500, 3) * 30 - 20)),
        replace(random_gaussians(500), colors_linear=torch.randn(500, 3) * 20),
    ],
    ids=["extreme", "identical", "points", "transparent", "far", "spread", "sizes", "colors"],
)
@pytest.mark.parametrize("num", [1, 2, 37])
def test_unusual_gaussians_merge_to_valid_ones(scene: Gaussians, num: int) -> None:
    merged = merge(scene, num)
    assert len(merged) == num
    for name, tensor in merged.tensors().items():
        assert tensor.isfinite().all(), name
    assert merged.quaternions_wxyz.norm(dim=-1).sub(1).abs().max() < 1e-5
    assert merged.quaternions_wxyz[:, 0].min() >= 0
    assert merged.scales.min() >= 0
    assert merged.opacities.min() >= 0
    assert merged.opacities.max() <= 1


@pytest.mark.parametrize("num", [0, 1, 5])
def test_a_limit_that_does_not_bind_returns_the_same_object(num: int) -> None:
    scene = random_gaussians(num)
    assert merge(scene, 5) is scene

"""Deltas on base Gaussians: what zeros leave, and how far the network can go."""

from __future__ import annotations

import pytest
import torch

from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.imaging.color import srgb_to_linear
from sharp_cog.model.composer import NUM_ATTRIBUTES, compose
from sharp_cog.model.initializer import BaseGaussians, initialize


@pytest.fixture(scope="module")
def base() -> BaseGaussians:
    """Return 2 x 2 x 3 base Gaussians of mid-grey at 4 m."""
    return initialize(torch.full((1, 3, 4, 6), 0.5), torch.full((1, 2, 4, 6), 4.0))


def composed(base: BaseGaussians, **attributes: float) -> NDCGaussians:
    """Apply the same delta, zero but for some attributes by their index, to all base Gaussians."""
    delta = torch.zeros(1, NUM_ATTRIBUTES, 2, 2, 3)
    for name, value in attributes.items():
        delta[:, int(name.removeprefix("d"))] = value
    return compose(base, delta)


def test_deltas_of_zero_leave_the_base_gaussians(base: BaseGaussians) -> None:
    gaussians = composed(base)
    depth_m = gaussians.means[0, :, 2]
    torch.testing.assert_close(depth_m, torch.full_like(depth_m, 4.0), rtol=3e-3, atol=0)
    torch.testing.assert_close(gaussians.scales[0], (base.cell_size * depth_m).unsqueeze(-1).expand(-1, 3))
    assert torch.equal(gaussians.quaternions_wxyz[0], torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(12, -1))
    torch.testing.assert_close(gaussians.colors_linear, srgb_to_linear(torch.full_like(gaussians.means, 0.5)))
    assert (gaussians.opacities == 0.5).all()


def test_scales_grow_at_most_tenfold_and_stay_positive(base: BaseGaussians) -> None:
    plain = composed(base).scales[..., 0]
    assert (composed(base, d3=50.0).scales[..., 0] / plain).max() <= 10.0001
    assert composed(base, d3=-50.0).scales.min() > 0


@pytest.mark.parametrize("delta", [-1e4, -30.0, 30.0, 1e4])
def test_any_delta_of_depth_gives_a_positive_finite_depth(base: BaseGaussians, delta: float) -> None:
    depth_m = composed(base, d2=delta).means[..., 2]
    assert (depth_m > 0).all()
    assert depth_m.isfinite().all()


def test_gaussians_come_in_the_order_layer_row_column(base: BaseGaussians) -> None:
    delta = torch.zeros(1, NUM_ATTRIBUTES, 2, 2, 3)
    delta[0, 13] = torch.arange(12.0).view(2, 2, 3)
    opacities = compose(base, delta).opacities[0]
    torch.testing.assert_close(opacities, torch.sigmoid(torch.arange(12.0)))

"""Lift and the weightless stages that it shares with SHARP, against geometry worked out by hand."""

from __future__ import annotations

import pytest
import torch

from sharp_cog.errors import DepthError
from sharp_cog.model.initializer import initialize
from sharp_cog.model.lift import Lift

SIZE = 64


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def test_lift_without_depth_says_what_to_do(image: torch.Tensor) -> None:
    with pytest.raises(DepthError, match="needs a depth map"):
        Lift()(image, torch.ones(1))


def test_lift_places_every_gaussian_at_its_cell_and_depth(image: torch.Tensor) -> None:
    columns = torch.linspace(1, 3, SIZE // 2).repeat_interleave(2)
    depth_m = columns.expand(1, 1, SIZE, SIZE)
    gaussians = Lift()(image, torch.ones(1), depth_m)
    num_cells = SIZE // 2
    assert gaussians.means.shape == (1, 2 * num_cells**2, 3)
    means = gaussians.means.view(2, num_cells, num_cells, 3).double()
    # The composer's own offset keeps 1 / z away from zero by 1e-3, in units of the nearest depth.
    unit = 1 + 1e-6
    expected_z = unit / (unit / columns[::2].double() + 1e-3)
    torch.testing.assert_close(means[..., 2], expected_z.expand(2, num_cells, num_cells), rtol=1e-5, atol=0)
    centres = -1 + (2 * torch.arange(num_cells).double() + 1) / num_cells
    torch.testing.assert_close(means[..., 0], (centres * expected_z).expand(2, num_cells, -1), rtol=1e-5, atol=1e-6)
    y_over_z = (means[..., 1] / means[..., 2])[0, :, 0]
    torch.testing.assert_close(y_over_z, centres, rtol=1e-5, atol=1e-6)


def test_lift_gives_isotropic_gaussians_as_wide_as_their_cell(image: torch.Tensor) -> None:
    depth_m = torch.full((1, 1, SIZE, SIZE), 2.0)
    gaussians = Lift()(image, torch.ones(1), depth_m)
    expected = (4 / SIZE) * gaussians.means[..., 2:].expand(-1, -1, 3)
    torch.testing.assert_close(gaussians.scales, expected, rtol=1e-5, atol=0)
    assert torch.equal(gaussians.quaternions_wxyz[0, 0], torch.tensor([1.0, 0, 0, 0]))
    assert torch.all(gaussians.opacities == 0.5)


def test_lift_keeps_the_mean_colour_of_each_cell(image: torch.Tensor) -> None:
    flat = torch.full_like(image, 0.5)
    gaussians = Lift()(flat, torch.ones(1), torch.ones(1, 1, SIZE, SIZE))
    linear = ((0.5 + 0.055) / 1.055) ** 2.4  # IEC 61966-2-1
    torch.testing.assert_close(gaussians.colors_linear, torch.full_like(gaussians.colors_linear, linear))


def test_one_layer_of_depth_serves_both(image: torch.Tensor) -> None:
    depth_m = 1 + torch.rand(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    one, two = initialize(image, depth_m), initialize(image, depth_m.expand(-1, 2, -1, -1))
    assert torch.equal(one.inverse_z, two.inverse_z)
    assert torch.equal(one.feature_input, two.feature_input)


def test_a_batch_gives_what_its_pictures_give_alone(image: torch.Tensor) -> None:
    images = torch.cat([image, image.flip(-1)])
    depth_m = torch.stack([torch.full((1, SIZE, SIZE), 1.5), torch.full((1, SIZE, SIZE), 4.0)])
    both = Lift()(images, torch.ones(2), depth_m)
    second = Lift()(images[1:], torch.ones(1), depth_m[1:])
    torch.testing.assert_close(both.means[1:], second.means)
    torch.testing.assert_close(both.colors_linear[1:], second.colors_linear)


def test_a_depth_of_its_own_is_refused_not_left_out() -> None:
    with pytest.raises(DepthError, match="save_internal_depth is given, but the model 'lift' has no own depth"):
        Lift()(torch.zeros(1, 3, 8, 8), torch.ones(1), torch.ones(1, 1, 8, 8), on_monodepth=print)

"""Lift: each cell of the image at the depth of the map."""

from __future__ import annotations

import pytest
import torch

from sharp_cog.errors import DepthError
from sharp_cog.model.external_depth import DepthUse
from sharp_cog.model.lift import lift
from tests import parity

SIZE = 512


def random_depth() -> torch.Tensor:
    """Return a depth map between 2 and 3 m."""
    return 2.0 + torch.rand(1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def test_every_gaussian_lies_at_its_cell_and_the_nearest_depth_in_it() -> None:
    image, depth_m = parity.small_input().image, random_depth()
    gaussians = lift(image, depth_m, DepthUse())
    front, back = gaussians.means[0].view(2, SIZE // 2, SIZE // 2, 3)
    assert torch.equal(front, back)
    nearest = -torch.nn.functional.max_pool2d(-depth_m, 2)[0, 0]
    # The composer keeps 1 / z away from zero by 1e-3, in units of the nearest depth.
    torch.testing.assert_close(front[..., 2], nearest, rtol=3e-3, atol=0)
    centres = (torch.arange(SIZE // 2) * 2 + 1) / (SIZE / 2) - 1
    torch.testing.assert_close(front[..., 0] / front[..., 2], centres.expand(SIZE // 2, -1), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        front[..., 1] / front[..., 2], centres.unsqueeze(-1).expand(-1, SIZE // 2), rtol=0, atol=1e-4
    )


def test_the_mode_fixed_moves_the_back_layer_away() -> None:
    gaussians = lift(parity.small_input().image, random_depth(), DepthUse(mode="fixed", back_surface_factor=1.5))
    front, back = gaussians.means[0].chunk(2)
    assert parity.relative_error(back.numpy(), 1.5 * front.numpy()) < 2e-3


def test_there_is_nothing_to_fit_to() -> None:
    with pytest.raises(DepthError, match="no monodepth"):
        lift(parity.small_input().image, torch.ones(1, 1, SIZE, SIZE), DepthUse(fit="median"))

"""The grid of base Gaussians."""

from __future__ import annotations

import torch

from sharp_cog.model.initializer import initialize


def test_a_cell_has_the_mean_colour_and_the_nearest_depth_of_its_pixels() -> None:
    image = torch.rand(1, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    depth_m = 3.0 + torch.rand(1, 2, 4, 6, generator=torch.Generator().manual_seed(1))
    base = initialize(image, depth_m)
    assert base.inverse_z.shape == (1, 2, 2, 3)
    cell = depth_m[0, 1, 2:4, 4:6]  # The lower right cell of the back layer.
    torch.testing.assert_close(base.global_scale[0] / base.inverse_z[0, 1, 1, 2], cell.min())
    torch.testing.assert_close(base.colors_srgb[0, :, 0, 1, 2], image[0, :, 2:4, 4:6].mean(dim=(1, 2)))
    torch.testing.assert_close(base.global_scale[0], depth_m.min(), rtol=0, atol=1e-5)


def test_centres_of_cells_divide_the_image_evenly() -> None:
    base = initialize(torch.zeros(1, 3, 4, 8), torch.ones(1, 2, 4, 8))
    assert base.x_ndc.tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert base.y_ndc.tolist() == [[-0.5], [0.5]]
    assert base.cell_size == 0.5


def test_depth_is_clamped_at_a_hundred_times_the_nearest() -> None:
    depth_m = torch.full((1, 2, 2, 4), 2.0)
    depth_m[..., 2:] = 1e6
    base = initialize(torch.zeros(1, 3, 2, 4), depth_m)
    torch.testing.assert_close(base.inverse_z[0, 0, 0], torch.tensor([1.0, 0.01]))


def test_one_layer_of_depth_serves_both() -> None:
    depth_m = 1.0 + torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    one, two = (
        initialize(torch.zeros(1, 3, 4, 4), depth.clone()) for depth in (depth_m, depth_m.expand(-1, 2, -1, -1))
    )
    assert torch.equal(one.inverse_z, two.inverse_z)
    assert torch.equal(one.feature_input, two.feature_input)

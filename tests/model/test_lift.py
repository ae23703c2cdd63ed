"""Lift: each cell of the image at the depth of the map, and the background continued behind depth edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sharp_cog.errors import DepthError
from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.model.external_depth import DepthUse
from sharp_cog.model.lift import lift
from tests import parity

SIZE = 256
NUM = SIZE // 2
NUM_VISIBLE = NUM**2
RED, BLUE = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9)


def lifted(image: torch.Tensor, depth_m: torch.Tensor, use: DepthUse | None = None) -> NDCGaussians:
    return lift(image, depth_m, use or DepthUse(), disparity_factor=0.8, aspect=1.0)


def picture() -> torch.Tensor:
    return torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def grid() -> tuple[torch.Tensor, torch.Tensor]:
    """Return x and y of the pixels in NDC."""
    centres = (torch.arange(SIZE) + 0.5) * 2 / SIZE - 1
    return centres.expand(SIZE, -1), centres.unsqueeze(-1).expand(-1, SIZE)


def scene(is_near: torch.Tensor, near_m: torch.Tensor | float, far_m: torch.Tensor | float) -> NDCGaussians:
    """Return the splat of a red surface in front of a blue one."""
    color = torch.where(is_near, torch.tensor(RED).view(3, 1, 1), torch.tensor(BLUE).view(3, 1, 1))
    depth_m = torch.where(is_near, torch.as_tensor(near_m), torch.as_tensor(far_m))
    return lifted(color[None], depth_m[None, None].float())


def parts(gaussians: NDCGaussians) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Return x, y and z of all Gaussians with x and y in NDC; colours; and which are hidden, inside the image."""
    means = gaussians.means[0].numpy()
    places = np.stack([means[:, 0] / means[:, 2], means[:, 1] / means[:, 2], means[:, 2]], axis=1)
    is_hidden = np.arange(len(means)) >= NUM_VISIBLE
    # The margin begins in the outermost cells of the image.
    is_hidden &= np.abs(places[:, :2]).max(axis=1) < 1 - 16 / SIZE
    return places, gaussians.colors_linear[0].numpy(), is_hidden


def test_the_visible_surface_has_one_gaussian_in_each_cell_at_the_depth_of_the_map() -> None:
    x, y = grid()
    depth_m = 1 / (0.4 + 0.1 * x - 0.07 * y)
    gaussians = lifted(picture(), depth_m[None, None])
    front = gaussians.means[0, :NUM_VISIBLE].view(NUM, NUM, 3)
    centres = (torch.arange(NUM) * 2 + 1) / NUM - 1
    torch.testing.assert_close(front[..., 0] / front[..., 2], centres.expand(NUM, -1), rtol=0, atol=1e-5)
    torch.testing.assert_close(front[..., 1] / front[..., 2], centres.view(-1, 1).expand(-1, NUM), rtol=0, atol=1e-5)
    expected = 1 / (0.4 + 0.1 * centres.expand(NUM, -1) - 0.07 * centres.view(-1, 1))
    torch.testing.assert_close(front[..., 2], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("steepness", [0.0, 0.3, 0.36])
def test_a_plane_hides_nothing_however_steep_it_is(steepness: float) -> None:
    x, _ = grid()
    places, _, is_hidden = parts(lifted(picture(), (1 / (0.4 + steepness * x))[None, None]))
    assert not is_hidden.any()
    # The margin goes on in the plane, until its disparity is a third more or less than at the border.
    margin = places[NUM_VISIBLE:]
    near = (np.abs(margin[:, 0]) < 1.05) & (0.4 + steepness * margin[:, 0] > 0.1)
    np.testing.assert_allclose(1 / margin[near, 2], 0.4 + steepness * margin[near, 0], rtol=0.02, atol=0.005)
    assert margin[:, :2].min() < -1.02
    assert margin[:, :2].max() > 1.02


def test_the_background_goes_on_behind_an_edge_with_its_depth_and_colour_and_nowhere_else() -> None:
    x, y = grid()
    is_near = (x.abs() < 0.5) & (y.abs() < 0.4)
    # The background leans: continued by its values alone, it would miss its plane.
    wall = 1 / (0.25 + 0.08 * x + 0.05 * y)
    places, colors, is_hidden = parts(scene(is_near, 1.5, wall))
    hidden, blue = places[is_hidden], (np.array(BLUE) / 1.055 + 0.055 / 1.055) ** 2.4
    assert 500 < len(hidden) < NUM_VISIBLE / 4
    assert (np.abs(hidden[:, 0]) < 0.5 + 12 / NUM).all()
    assert (np.abs(hidden[:, 1]) < 0.4 + 12 / NUM).all()
    # The rim of the foreground is covered: a cell of the hidden surface is two cells wide.
    rows = np.linspace(-0.38, 0.38, 30)
    rim = np.stack([np.full(30, 0.48), rows], axis=1)
    distance = np.abs(hidden[:, None, :2] - rim).max(axis=-1).min(axis=0)
    assert distance.max() < 3 * 2 / NUM
    plane = 0.25 + 0.08 * hidden[:, 0] + 0.05 * hidden[:, 1]
    close = np.maximum(np.abs(hidden[:, 0]) - 0.42, np.abs(hidden[:, 1]) - 0.32) > 0
    # Exact in the layer next to the edge; the far fill behind it is allowed to be a little off.
    error = np.abs(1 / hidden[close, 2] / plane[close] - 1)
    assert np.median(error) < 0.011
    assert error.max() < 0.1
    # No red, not even from the pixels at the edge.
    np.testing.assert_allclose(colors[is_hidden], np.broadcast_to(blue, (len(hidden), 3)), atol=0.01)


def test_mixed_pixels_leave_neither_a_ghost_on_the_background_nor_a_cell_in_the_air() -> None:
    x, _ = grid()
    # An edge that is blurred over several pixels in image and depth.
    share = ((0.5 - x.abs()) * SIZE / 2 / 3 + 0.5).clamp(0, 1)
    color = torch.tensor(BLUE).view(3, 1, 1) + share * (torch.tensor(RED) - torch.tensor(BLUE)).view(3, 1, 1)
    depth_m = 3.0 + share * (1.5 - 3.0)
    places, colors, _ = parts(lifted(color[None], depth_m[None, None]))
    depths = places[:NUM_VISIBLE, 2]
    assert ((np.abs(depths - 1.5) < 0.01) | (np.abs(depths - 3.0) < 0.03)).all()
    background = colors[:NUM_VISIBLE][np.abs(depths - 3.0) < 0.03]
    assert background[:, 0].max() < 0.05


def test_a_pole_as_thin_as_a_hair_is_kept_and_has_background_behind_it() -> None:
    x, _ = grid()
    is_near = (x > 0.1) & (x < 0.1 + 2.2 * 2 / SIZE)
    places, _, is_hidden = parts(scene(is_near, 1.0, 4.0))
    visible = places[:NUM_VISIBLE]
    pole = visible[visible[:, 2] < 1.1]
    assert len(np.unique(pole[:, 1].round(4))) == NUM
    assert (np.abs(pole[:, 0] - 0.104) < 6 / SIZE).all()
    behind = places[is_hidden]
    np.testing.assert_allclose(behind[:, 2], 4.0, rtol=0.03)
    assert len(np.unique(behind[:, 1].round(3))) > 0.4 * NUM


def test_a_map_in_another_unit_gives_the_same_scene_in_another_size() -> None:
    x, y = grid()
    is_near = (x.abs() < 0.3) & (y.abs() < 0.3)
    small, large = scene(is_near, 0.5, 2.0), scene(is_near, 5.0, 20.0)
    torch.testing.assert_close(10 * small.means, large.means, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(10 * small.scales, large.scales, rtol=1e-4, atol=1e-5)


def test_the_mode_fixed_replaces_the_hidden_surfaces_by_a_copy_farther_away() -> None:
    x, y = grid()
    use = DepthUse(mode="fixed", back_surface_factor=1.5)
    depth_m = torch.where((x.abs() < 0.3) & (y.abs() < 0.3), 1.0, 3.0)
    gaussians = lifted(picture(), depth_m[None, None], use)
    front, back = gaussians.means[0].chunk(2)
    assert len(front) == NUM_VISIBLE
    assert parity.relative_error(back.numpy(), 1.5 * front.numpy()) < 1e-6


def test_there_is_nothing_to_fit_to() -> None:
    with pytest.raises(DepthError, match="no monodepth"):
        lifted(picture(), torch.ones(1, 1, SIZE, SIZE), DepthUse(fit="median"))

"""Colours that depend on the direction of view, compared with scipy's spherical harmonics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from sharp_cog.geometry.transform import opencv_to_opengl
from sharp_cog.preview.colors import seen_colors
from sharp_cog.preview.rasterize import rasterize
from sharp_cog.preview.view import View
from tests.geometry.test_harmonics import scipys_basis
from tests.splats import random_gaussians, srgb_of, with_harmonics

POSE = np.eye(4)
POSE[:3, :3] = Rotation.from_euler("xyz", [10, -30, 5], degrees=True).as_matrix()
POSE[:3, 3] = [0.4, -0.2, 1.5]
VIEW = View(width=41, height=41, focal_length_px=60.0, world_to_camera=POSE)


def position_of(pose: np.ndarray) -> np.ndarray:
    return np.linalg.inv(pose)[:3, 3]


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_colours_are_those_of_the_formula(degree: int) -> None:
    gaussians = with_harmonics(random_gaussians(300), degree)
    offsets = gaussians.means.double().numpy() - position_of(POSE)
    directions = torch.from_numpy(offsets / np.linalg.norm(offsets, axis=1, keepdims=True))
    assert gaussians.harmonics is not None
    shift = np.einsum("nk,nkc->nc", scipys_basis(directions, degree), gaussians.harmonics.double().numpy())
    expected = np.maximum(srgb_of(gaussians.colors_linear) + shift, 0)
    assert (expected > 1).any()
    assert (expected == 0).any()
    np.testing.assert_allclose(srgb_of(seen_colors(gaussians, VIEW)), expected, atol=1e-5)


def test_without_harmonics_colours_stay_but_for_negative_ones() -> None:
    gaussians = random_gaussians(5)
    assert torch.equal(seen_colors(gaussians, VIEW), gaussians.colors_linear)
    gaussians.colors_linear[2, 1] = -0.3
    assert seen_colors(gaussians, VIEW)[2, 1] == 0


def test_a_turned_scene_has_the_same_colours_from_the_turned_camera() -> None:
    gaussians = with_harmonics(random_gaussians(300), 3)
    half_turn = np.diag([1.0, -1.0, -1.0, 1.0])
    turned = seen_colors(opencv_to_opengl(gaussians), VIEW.moved(POSE @ half_turn))
    torch.testing.assert_close(turned, seen_colors(gaussians, VIEW), rtol=1e-4, atol=1e-5)


def test_one_gaussian_changes_its_colour_with_the_camera() -> None:
    """Harmonic z is positive ahead and negative behind: the Gaussian is brighter from the front than from behind."""
    one = replace(
        random_gaussians(1),
        means=torch.tensor([[0.0, 0.0, 2.0]]),
        scales=torch.full((1, 3), 0.3),
        colors_linear=torch.full((1, 3), 0.2140411),  # 0.5 in sRGB.
        opacities=torch.ones(1),
        harmonics=torch.tensor([[[0.0] * 3, [0.2, 0.4, -0.4], [0.0] * 3]]),
    )
    behind = np.diag([-1.0, 1.0, -1.0, 1.0])
    behind[2, 3] = 4.0
    for pose, sign in ((np.eye(4), 1.0), (behind, -1.0)):
        rendering = rasterize(one, View(width=33, height=33, focal_length_px=40.0, world_to_camera=pose))
        seen = srgb_of(torch.from_numpy(rendering.rgb[16, 16] / rendering.alpha[16, 16]))
        np.testing.assert_allclose(seen, 0.5 + sign * 0.4886025 * np.array([0.2, 0.4, -0.4]), atol=1e-4)


@pytest.mark.gpu
def test_colours_are_the_same_on_cuda() -> None:
    gaussians = with_harmonics(random_gaussians(70_000), 3)
    on_cuda = seen_colors(gaussians.map(torch.Tensor.cuda), VIEW).cpu()
    torch.testing.assert_close(on_cuda, seen_colors(gaussians, VIEW), rtol=1e-4, atol=1e-5)

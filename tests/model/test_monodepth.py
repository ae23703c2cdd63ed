"""Disparity and depth."""

from __future__ import annotations

import torch

from sharp_cog.model.monodepth import depth_from_disparity


def test_depth_is_the_focal_length_over_width_divided_by_disparity() -> None:
    disparity = torch.tensor([[0.5, 2.0], [0.25, 4.0]]).view(2, 2, 1, 1)
    depth_m = depth_from_disparity(disparity, torch.tensor([1.0, 3.0]))
    assert depth_m.flatten().tolist() == [2.0, 0.5, 12.0, 0.75]


def test_depth_is_finite_and_positive_for_any_disparity() -> None:
    disparity = torch.tensor([0.0, 1e-9, 1e9, torch.inf]).view(1, 1, 2, 2)
    depth_m = depth_from_disparity(disparity, torch.tensor([2.0]))
    torch.testing.assert_close(depth_m.flatten(), torch.tensor([2e4, 2e4, 2e-4, 2e-4]))

"""Simplifying a scene: what is dropped, what is refused, and what is merged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sharp_cog.errors import OptionError
from sharp_cog.geometry.merge import merge
from sharp_cog.geometry.simplify import simplify
from tests.splats import gaussians_in_front


def test_limits_that_do_not_bind_return_the_same_object() -> None:
    gaussians = gaussians_in_front(50)
    assert simplify(gaussians) is gaussians
    assert simplify(gaussians, max_gaussians=50, min_opacity=float(gaussians.opacities.min())) is gaussians
    nothing = gaussians_in_front(0)
    assert simplify(nothing, max_gaussians=5, min_opacity=0.5) is nothing


def test_gaussians_below_the_least_opacity_are_dropped_in_their_order() -> None:
    gaussians = gaussians_in_front(500)
    kept = simplify(gaussians, min_opacity=0.3)
    assert torch.equal(kept.means, gaussians.means[gaussians.opacities >= 0.3])


def test_a_least_opacity_that_leaves_nothing_is_an_error_that_names_one_that_leaves_something() -> None:
    gaussians = replace(gaussians_in_front(1200), opacities=torch.linspace(0.0, 0.49996, 1200))
    message = r"min_opacity is 0\.6, but the most opaque of the 1,200 Gaussians has 0\.499: give at most that"
    with pytest.raises(OptionError, match=message):
        simplify(gaussians, min_opacity=0.6)
    assert len(simplify(gaussians, min_opacity=0.499)) > 0


def test_gaussians_that_renderers_do_not_draw_are_dropped_before_any_merge() -> None:
    gaussians = gaussians_in_front(300)
    gaussians.opacities[:200] = 0.003
    gaussians.opacities[200:].clamp_(min=0.1)
    kept = simplify(gaussians, max_gaussians=150)
    assert torch.equal(kept.means, gaussians.means[200:])


def test_a_scene_of_gaussians_that_cannot_be_seen_is_merged_too() -> None:
    gaussians = replace(gaussians_in_front(300), opacities=torch.full((300,), 0.001))
    assert len(simplify(gaussians, max_gaussians=10)) == 10


def test_both_limits_drop_first_and_merge_the_rest() -> None:
    gaussians = gaussians_in_front(500)
    found = simplify(gaussians, min_opacity=0.3, max_gaussians=100)
    expected = merge(gaussians.map(lambda tensor: tensor[gaussians.opacities >= 0.3]), 100)
    assert torch.equal(found.means, expected.means)

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.preview.holes import CAMERA_RANGES, MAX_HOLES, largest_range_without_holes
from sharp_cog.preview.path import DEFAULT_RANGE, PATHS, camera_path
from sharp_cog.preview.render import coverage
from sharp_cog.preview.view import View
from tests.preview.scenes import CAMERA, together, wall


def tried(gaussians: Gaussians) -> float:
    return largest_range_without_holes(gaussians, CAMERA, "swipe", near_m=1.0, focus_m=2.0)


def test_a_scene_without_hidden_parts_has_the_default_range() -> None:
    assert tried(wall(width_m=8.0)) == DEFAULT_RANGE


@pytest.mark.parametrize(("hole_m", "expected"), [(7.0, DEFAULT_RANGE), (9.0, 0.045), (9.6, CAMERA_RANGES[-1])])
def test_a_hole_behind_a_thing_limits_the_range_the_more_the_larger_it_is(hole_m: float, expected: float) -> None:
    scene = together(wall(1.0, width_m=0.8), wall(10.0, width_m=40.0, hole_m=hole_m))
    assert not (coverage(scene, View.of_photograph(CAMERA, width=192)) < 0.5).any(), "hidden from the photograph"
    assert tried(scene) == expected


@pytest.mark.parametrize("path", PATHS)
def test_every_path_is_limited_by_a_hole(path: str) -> None:
    scene = together(wall(1.0, width_m=0.8), wall(10.0, width_m=40.0, hole_m=9.6))
    assert largest_range_without_holes(scene, CAMERA, path, near_m=1.0, focus_m=2.0) < DEFAULT_RANGE


def test_holes_in_the_photographs_own_view_do_not_count() -> None:
    scene = wall(2.0, width_m=8.0, hole_m=0.5)
    assert (coverage(scene, View.of_photograph(CAMERA, width=192)) < 0.5).mean() > MAX_HOLES
    assert tried(scene) == DEFAULT_RANGE


@pytest.mark.slow
def test_the_example_is_shown_without_holes(prediction: Prediction) -> None:
    """Much of the room is hidden behind its furniture, so the camera moves less than it would otherwise."""
    depth_m = prediction.gaussians.means[:, 2].numpy()
    near_m, focus_m = (float(np.quantile(depth_m, share)) for share in (0.05, 0.5))
    camera, photograph = prediction.camera, View.of_photograph(prediction.camera, width=384)

    def largest_hole(camera_range: float) -> float:
        poses = camera_path(
            "swipe", num_frames=5, camera=camera, near_m=near_m, focus_m=focus_m, camera_range=camera_range
        )
        return max(float((coverage(prediction.gaussians, photograph.moved(pose)) < 0.5).mean()) for pose in poses)

    found = largest_range_without_holes(prediction.gaussians, camera, "swipe", near_m=near_m, focus_m=focus_m)
    assert min(CAMERA_RANGES) < found < DEFAULT_RANGE
    assert largest_hole(found) <= 0.02
    assert largest_hole(DEFAULT_RANGE) > 0.03
    flat = replace(
        prediction.gaussians,
        means=prediction.gaussians.means * (3.0 / prediction.gaussians.means[:, 2:]),
        scales=torch.full_like(prediction.gaussians.scales, 0.02),
    )
    assert largest_range_without_holes(flat, camera, "rotate_forward", near_m=3.0, focus_m=3.0) == DEFAULT_RANGE

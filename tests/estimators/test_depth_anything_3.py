"""Depth Anything 3 Metric in plain torch, compared with the authors' own code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sharp_cog.estimators import depth_anything_3
from sharp_cog.estimators.depth_anything_3 import DepthAnything3, DepthAnything3Estimator
from sharp_cog.estimators.estimate import normalized
from tests.data.parity import synthetic
from tests.estimators.references import depth_anything_3_state, reference, source

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> DepthAnything3:
    return depth_anything_3.from_checkpoint(depth_anything_3_state()).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return reference("depth_anything_3")


def test_the_network_computes_the_same_as_the_authors_code(network: DepthAnything3, expected: dict[str, Any]) -> None:
    pixels = torch.from_numpy(synthetic.photograph(112, 84, 3)).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        depth, sky = network(normalized(pixels))
        final = depth_anything_3.with_far_sky(depth, sky)
    for name, values in {"depth": depth, "sky": sky, "final": final}.items():
        np.testing.assert_allclose(values[0].flatten()[expected["pixel_index"]], expected[name], rtol=1e-4, atol=1e-4)


def test_depth_is_proportional_to_the_focal_length(network: DepthAnything3) -> None:
    estimator = DepthAnything3Estimator(network, CPU)
    one, double = (estimator(source(112, 84, focal)).depth_m for focal in (100.0, 200.0))
    np.testing.assert_allclose(double, 2 * one, rtol=1e-5)


def test_depth_is_in_metres_for_a_focal_length_of_300_pixels_of_the_network(network: DepthAnything3) -> None:
    # An image of the network's own size needs no resizing: 504 x 378 pixels are 36 x 27 patches.
    photo = source(504, 378, 300.0)
    pixels = torch.from_numpy(photo.rgb).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        expected_m = depth_anything_3.with_far_sky(*network(normalized(pixels)))[0]
    np.testing.assert_allclose(DepthAnything3Estimator(network, CPU)(photo).depth_m, expected_m, rtol=1e-4)


@pytest.mark.parametrize("size", [(120, 80), (80, 120), (97, 97), (2000, 30)])
def test_depth_has_the_size_of_the_image(network: DepthAnything3, size: tuple[int, int]) -> None:
    estimate = DepthAnything3Estimator(network, CPU)(source(*size, 100.0))
    assert estimate.depth_m.shape == size[::-1]
    assert np.isfinite(estimate.depth_m).all()
    assert estimate.focal_length_px is None


def test_the_sky_is_as_far_as_the_farthest_of_everything_else() -> None:
    depth = torch.linspace(1.0, 101.0, 1000).reshape(1, 10, 100)
    sky = torch.zeros_like(depth)
    sky[0, 0] = 1.0  # The first 100 values, which are the nearest.
    moved = depth_anything_3.with_far_sky(depth, sky)
    assert torch.equal(moved[0, 1:], depth[0, 1:])
    assert moved[0, 0].unique() == pytest.approx(np.quantile(depth[0, 1:].numpy(), 0.99), rel=1e-5)
    assert torch.equal(depth_anything_3.with_far_sky(depth, torch.zeros_like(depth)), depth)


def test_a_missing_tensor_is_refused() -> None:
    state = depth_anything_3_state()
    del state["model.head.scratch.refinenet1.out_conv.weight"]
    with pytest.raises(ValueError, match="out_conv"):
        depth_anything_3.from_checkpoint(state)

"""The conversion of an image and its depth map to the model's input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sharp_cog.depth.maps import DepthMap
from sharp_cog.geometry.camera import Camera
from sharp_cog.imaging.images import SourceImage, from_array
from sharp_cog.runtime import preprocess as module
from sharp_cog.runtime.preprocess import ModelInput, preprocess

CPU = torch.device("cpu")


def source(width: int, height: int) -> SourceImage:
    """Return a ramp from black on the left to white on the right."""
    ramp = np.linspace(0, 255, width).round().astype(np.uint8)
    camera = Camera(width=width, height=height, focal_length_px=0.75 * width)
    return SourceImage(rgb=np.tile(ramp[None, :, None], (height, 1, 3)), camera=camera, image_format="PNG")


def test_the_image_is_stretched_to_a_square_with_its_corners_aligned() -> None:
    model_input = preprocess(source(3, 2), None, size=5, device=CPU, image_hash="a")
    assert model_input.image.shape == (1, 3, 5, 5)
    expected = torch.tensor([0.0, 64.0, 128.0, 191.5, 255.0]) / 255.0
    torch.testing.assert_close(model_input.image, expected.expand(1, 3, 5, 5))
    assert model_input.disparity_factor.tolist() == [0.75]
    assert model_input.depth_m is None
    assert model_input.image_hash == "a"


def test_unknown_depth_stays_unknown() -> None:
    depth_m = np.full((4, 4), 2.0, np.float32)
    depth_m[:, 2:] = np.nan
    model_input = preprocess(source(4, 4), DepthMap(depth_m=depth_m), size=4, device=CPU)
    assert model_input.depth_m is not None
    assert model_input.depth_m.shape == (1, 1, 4, 4)
    assert torch.equal(model_input.depth_m[0, 0, :, 0], torch.full((4,), 2.0))
    assert model_input.depth_m[0, 0, :, 3].isnan().all()


@pytest.mark.parametrize("name", ["disparity_factor", "depth_m"])
def test_a_wrong_shape_is_refused_with_both_shapes(name: str) -> None:
    arguments = {"image": torch.zeros(1, 3, 8, 8), "disparity_factor": torch.ones(1), name: torch.ones(2, 8)}
    with pytest.raises(ValueError, match=rf"{name} has shape \(2, 8\), expected \(1"):
        ModelInput(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("width", "height"), [(400, 300), (97, 131), (64, 64), (33, 40)])
def test_a_large_image_is_sampled_as_it_would_be_resized(
    width: int, height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = from_array(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    expected = preprocess(large, None, size=64, device=CPU).image
    monkeypatch.setattr(module, "LARGE_PX", 1)
    sampled = preprocess(large, None, size=64, device=CPU).image
    assert sampled.shape == expected.shape
    torch.testing.assert_close(sampled, expected, rtol=0, atol=2e-6)


def test_a_large_depth_map_is_sampled_as_it_would_be_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    source = from_array(np.zeros((60, 80, 3), np.uint8))
    depth_m = np.random.default_rng(0).uniform(1, 5, (120, 160)).astype(np.float32)
    depth_m[30:50, 20:70] = np.nan
    expected = preprocess(source, DepthMap(depth_m=depth_m), size=64, device=CPU).depth_m
    monkeypatch.setattr(module, "LARGE_PX", 1)
    sampled = preprocess(source, DepthMap(depth_m=depth_m), size=64, device=CPU).depth_m
    torch.testing.assert_close(sampled, expected, rtol=0, atol=2e-6, equal_nan=True)

"""The sRGB curve, against the numbers of the standard and Pillow's colour management."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from sharp_cog.imaging.color import linear_to_srgb, srgb_to_linear


def test_the_curve_is_that_of_the_standard() -> None:
    srgb = torch.tensor([0.0, 0.04045, 0.2, 0.5, 0.735357, 1.0])
    linear = torch.tensor([0.0, 0.0031308, 0.0331048, 0.2140411, 0.5, 1.0])  # IEC 61966-2-1
    torch.testing.assert_close(srgb_to_linear(srgb), linear, rtol=0, atol=2e-6)
    torch.testing.assert_close(linear_to_srgb(linear), srgb, rtol=0, atol=2e-6)


def test_luminance_agrees_with_littlecms() -> None:
    """The lightness L* of a grey, which an independent sRGB profile computes, is a function of its linear light."""
    grey = np.arange(0, 256, 5, dtype=np.uint8)
    image = Image.fromarray(np.repeat(grey[None, :, None], 3, axis=2), mode="RGB")
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None
    lightness = np.asarray(converted)[0, :, 0] / 255 * 100
    linear = srgb_to_linear(torch.from_numpy(grey).double() / 255).numpy()
    expected = np.where(linear > (6 / 29) ** 3, 116 * np.cbrt(linear) - 16, linear * (29 / 3) ** 3)  # CIE 1976
    np.testing.assert_allclose(lightness, expected, atol=0.4)  # Half a step of 8 bits, and rounding.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_directions_are_inverse_and_exact_at_the_ends(dtype: torch.dtype) -> None:
    every = torch.linspace(0, 1, 4097, dtype=dtype)
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(every)), every, rtol=0, atol=1e-6)
    torch.testing.assert_close(srgb_to_linear(linear_to_srgb(every)), every, rtol=0, atol=1e-6)
    for curve in (linear_to_srgb, srgb_to_linear):
        ends = curve(torch.tensor([0.0, 1.0], dtype=dtype))
        assert ends[0] == 0
        torch.testing.assert_close(ends[1], torch.tensor(1.0, dtype=dtype), rtol=0, atol=1e-7)
        assert (curve(every).diff() > 0).all()


@settings(max_examples=20)
@given(st.lists(st.floats(0, 1, width=32, allow_subnormal=True), min_size=1, max_size=20))
def test_values_in_range_stay_in_range(values: list[float]) -> None:
    tensor = torch.tensor(values)
    given_values = tensor.clone()
    for curve in (linear_to_srgb, srgb_to_linear):
        result = curve(tensor)
        assert ((result >= 0) & (result <= 1 + 1e-6)).all()
        assert torch.equal(tensor, given_values)


def test_the_curve_goes_on_beyond_1_and_is_an_odd_function() -> None:
    beyond = torch.linspace(-4, 4, 801)
    torch.testing.assert_close(linear_to_srgb(srgb_to_linear(beyond)), beyond, rtol=1e-6, atol=1e-6)
    for curve in (linear_to_srgb, srgb_to_linear):
        assert torch.equal(curve(-beyond), -curve(beyond))
    assert linear_to_srgb(torch.tensor(4.0)).item() == pytest.approx(1.055 * 4 ** (1 / 2.4) - 0.055, rel=1e-6)

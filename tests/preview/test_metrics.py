"""PSNR and SSIM against scikit-image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sharp_cog.preview.metrics import psnr, ssim


def noisy_pair(*shape: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return a smooth image and a noisy copy of it, uint8."""
    rng = np.random.default_rng(7)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    smooth = 128 + 90 * np.sin(rows / 5) * np.cos(columns / 9)
    truth = np.broadcast_to(smooth.reshape(shape[0], shape[1], *[1] * (len(shape) - 2)), shape)
    noise = rng.normal(scale=20, size=shape)
    return np.clip(truth + noise, 0, 255).astype(np.uint8), truth.astype(np.uint8)


@pytest.mark.parametrize("shape", [(48, 64, 3), (11, 40, 3), (33, 29)])
def test_both_have_the_values_of_scikit_image(shape: tuple[int, ...]) -> None:
    image, truth = noisy_pair(*shape)
    assert psnr(image, truth) == pytest.approx(peak_signal_noise_ratio(truth, image, data_range=255), abs=1e-9)
    expected = structural_similarity(
        image,
        truth,
        data_range=255,
        channel_axis=2 if len(shape) == 3 else None,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert ssim(image, truth) == pytest.approx(expected, abs=1e-9)
    # The same image as numbers in [0, 1] is as like as before.
    as_floats = image / 255, truth / 255
    assert psnr(*as_floats) == pytest.approx(psnr(image, truth), abs=1e-9)
    assert ssim(*as_floats) == pytest.approx(expected, abs=1e-9)


def test_an_image_is_like_itself() -> None:
    image, _ = noisy_pair(20, 20, 3)
    assert psnr(image, image) == math.inf
    assert ssim(image, image) == pytest.approx(1.0, abs=1e-12)


def test_images_that_cannot_be_compared_are_refused() -> None:
    image, _ = noisy_pair(20, 20, 3)
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match=r"\(20, 20, 3\) and the truth \(10, 20, 3\)"):
            measure(image, image[:10])
        with pytest.raises(ValueError, match="uint8 and the truth float64"):
            measure(image, image / 255)
    with pytest.raises(ValueError, match="10x20 pixels, SSIM needs at least 11x11"):
        ssim(image[:, :10], image[:, :10])

"""Measures of the likeness of two images: PSNR and SSIM."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

_Image = NDArray[np.uint8] | NDArray[np.floating]

_WINDOW_PX = 11
"""Side of the window in which SSIM compares two images."""
_SIGMA_PX = 1.5
"""Standard deviation of the Gaussian weights in that window."""
_K1, _K2 = 0.01, 0.03
"""Constants that keep SSIM stable where an image is dark or flat."""


def psnr(image: _Image, truth: _Image) -> float:
    """Return the peak signal-to-noise ratio in decibels; infinity if the images are the same.

    Args:
        image: (height, width, channels) or (height, width), uint8, or floating-point numbers in [0, 1].
        truth: Image of the same shape and kind.

    Raises:
        ValueError: The images differ in shape or kind.
    """
    first, second = _pair(image, truth)
    error = float(((first - second) ** 2).mean())
    return math.inf if error == 0 else -10.0 * math.log10(error)


def ssim(image: _Image, truth: _Image) -> float:
    """Return the mean structural similarity, at most 1, averaged over the channels.

    Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004: Gaussian weights in a
    window of 11 x 11 pixels, and the mean over the windows that lie within the image.

    Args:
        image: (height, width, channels) or (height, width), uint8, or floating-point numbers in [0, 1].
        truth: Image of the same shape and kind.

    Raises:
        ValueError: The images differ in shape or kind, or are smaller than the window.
    """
    first, second = _pair(image, truth)
    if min(first.shape[:2]) < _WINDOW_PX:
        size = f"{first.shape[1]}x{first.shape[0]}"
        raise ValueError(f"the images are {size} pixels, SSIM needs at least {_WINDOW_PX}x{_WINDOW_PX}")
    # One plane each: (channels, 1, height, width).
    x, y = (torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1).unsqueeze(1) for pixels in (first, second))
    mean_x, mean_y = _local_mean(x), _local_mean(y)
    # Divided by the sum of the weights, not by one less: the covariances of the window and not of a population.
    variance_x = _local_mean(x * x) - mean_x**2
    variance_y = _local_mean(y * y) - mean_y**2
    covariance = _local_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _K1**2) / (mean_x**2 + mean_y**2 + _K1**2)
    structure = (2 * covariance + _K2**2) / (variance_x + variance_y + _K2**2)
    return float((luminance * structure).mean())


def _pair(image: _Image, truth: _Image) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both images as float64 in [0, 1]."""
    if image.shape != truth.shape:
        raise ValueError(f"the image has shape {image.shape} and the truth {truth.shape}: resize one of them")
    if (image.dtype == np.uint8) != (truth.dtype == np.uint8):
        raise ValueError(f"the image is {image.dtype} and the truth {truth.dtype}: convert one of them")
    unit = 255.0 if image.dtype == np.uint8 else 1.0
    return image.astype(np.float64) / unit, truth.astype(np.float64) / unit


def _local_mean(planes: torch.Tensor) -> torch.Tensor:
    """Return the weighted means of all windows that lie within planes (C, 1, H, W)."""
    offsets = torch.arange(_WINDOW_PX, dtype=planes.dtype) - _WINDOW_PX // 2
    weights = torch.exp(-0.5 * (offsets / _SIGMA_PX) ** 2)
    weights /= weights.sum()
    # A Gaussian is separable: rows first, then columns.
    return F.conv2d(F.conv2d(planes, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))

"""Unprojection compared with Apple's reference arrays."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.runtime.unproject import unproject
from tests import adversarial

PARITY = Path(__file__).parents[1] / "data" / "parity"


def ndc_gaussians(arrays: dict[str, np.ndarray]) -> NDCGaussians:
    def batch(name: str) -> torch.Tensor:
        return torch.from_numpy(arrays[name]).unsqueeze(0)

    return NDCGaussians(
        means=batch("ndc_mean_vectors"),
        scales=batch("ndc_singular_values"),
        quaternions_wxyz=batch("ndc_quaternions"),
        colors_linear=batch("colors"),
        opacities=batch("opacities"),
    )


@pytest.mark.parametrize("name", ["tiny", "tiny_aligned", "full"])
def test_apples_ndc_gaussians_become_apples_metric_gaussians(name: str) -> None:
    about = json.loads((PARITY / f"{name}.json").read_text())
    arrays = dict(np.load(PARITY / f"{name}.npz"))
    camera = Camera(width=about["width"], height=about["height"], focal_length_px=about["focal_length_px"])
    gaussians = unproject(ndc_gaussians(arrays), camera)
    np.testing.assert_allclose(gaussians.means, arrays["mean_vectors"], rtol=1e-6, atol=1e-7)
    assert (gaussians.scales[:, :-1] >= gaussians.scales[:, 1:]).all()
    # Apple's covariances in float32 keep few digits of a thin Gaussian's smallest scale, so the norm is compared.
    apples = arrays["singular_values"].astype(np.float64)
    assert np.linalg.norm(gaussians.scales.double().numpy() - apples) <= 1e-4 * np.linalg.norm(apples)
    # Each single scale is compared with float64.
    stretch = np.array([camera.width / 2, camera.height / 2, camera.focal_length_px]) / camera.focal_length_px
    rotation = Rotation.from_quat(arrays["ndc_quaternions"].astype(np.float64), scalar_first=True).as_matrix()
    exact = stretch[:, None] * rotation * arrays["ndc_singular_values"].astype(np.float64)[:, None, :]
    np.testing.assert_allclose(gaussians.scales, np.linalg.svd(exact, compute_uv=False), rtol=2e-6)
    axes = Rotation.from_quat(gaussians.quaternions_wxyz.double().numpy(), scalar_first=True).as_matrix()
    factors = axes * gaussians.scales.double().numpy()[:, None, :]
    covariances = factors @ factors.transpose(0, 2, 1)
    apples_covariances = arrays["covariances"].astype(np.float64)
    assert np.linalg.norm(covariances - apples_covariances) <= 1e-4 * np.linalg.norm(apples_covariances)
    assert torch.equal(gaussians.opacities, torch.from_numpy(arrays["opacities"]))
    assert torch.equal(gaussians.colors_linear, torch.from_numpy(arrays["colors"]))


def test_a_batch_of_two_is_refused() -> None:
    two = NDCGaussians(
        means=torch.ones(2, 5, 3),
        scales=torch.ones(2, 5, 3),
        quaternions_wxyz=torch.ones(2, 5, 4),
        colors_linear=torch.ones(2, 5, 3),
        opacities=torch.ones(2, 5),
    )
    with pytest.raises(ValueError, match="2 images"):
        unproject(two, Camera(width=4, height=3, focal_length_px=4.0))


@settings(max_examples=15)
@given(ndc=adversarial.ndc_gaussians(), focal_length_px=st.sampled_from([1.0, 80.0, 1150.0, 1e6]))
def test_unprojected_gaussians_have_unit_quaternions_and_the_exact_covariance(
    ndc: NDCGaussians, focal_length_px: float
) -> None:
    """For quaternions of any length, and for needles, discs and points."""
    camera = Camera(width=1200, height=800, focal_length_px=focal_length_px)
    splat = unproject(ndc, camera)
    assert (splat.quaternions_wxyz.double().norm(dim=1) - 1).abs().max() <= 1e-6
    assert splat.scales.isfinite().all()
    assert (splat.scales >= 0).all()
    stretch = np.array([600 / focal_length_px, 400 / focal_length_px, 1.0])
    wxyz = ndc.quaternions_wxyz[0].double().numpy()
    wxyz[(wxyz == 0).all(axis=1)] = [1, 0, 0, 0]
    wxyz /= np.abs(wxyz).max(axis=1, keepdims=True)
    rotations = Rotation.from_quat(wxyz, scalar_first=True).as_matrix()
    exact = stretch[:, None] * rotations * ndc.scales[0].double().numpy()[:, None]
    axes = Rotation.from_quat(splat.quaternions_wxyz.double().numpy(), scalar_first=True).as_matrix()
    factors = axes * splat.scales.double().numpy()[:, None]
    size = np.linalg.norm(exact, axis=(1, 2), keepdims=True).clip(1e-300)
    exact, factors = exact / size, factors / size
    error = np.linalg.norm(factors @ factors.transpose(0, 2, 1) - exact @ exact.transpose(0, 2, 1), axis=(1, 2))
    assert error.max() <= 1e-5

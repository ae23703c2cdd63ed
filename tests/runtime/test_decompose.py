"""The Jacobi decomposition, in plain torch and as a fused kernel, compared with float64, scipy and e3nn."""

from __future__ import annotations

from collections.abc import Callable

import e3nn.o3
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from sharp_cog.runtime.kernels import decompose as plain
from tests.fused_kernels import DEVICE, fused

STRETCHES = {
    "landscape": (0.52, 0.35, 1.0),
    "portrait": (0.3, 0.5, 1.0),
    "wide": (2.0, 1.3, 1.0),
    "panorama": (2.25, 0.225, 1.0),
    "400 mm": (0.05, 0.07, 1.0),
    "none": (1.0,) * 3,
}
TELESCOPES = {"1000 mm": (0.02, 0.013, 1.0), "1000 mm, 10:1": (0.02, 0.002, 1.0), "1:10": (0.005, 0.05, 1.0)}
NUM = 20_000
SCALE_LIMIT = 2e-6
TELESCOPE_SCALE_LIMIT = 4e-6
COVARIANCE_LIMIT = 2e-6

Matrices = NDArray[np.float64]
Decompose = Callable[[torch.Tensor, torch.Tensor, tuple[float, float, float]], tuple[torch.Tensor, torch.Tensor]]


def fused_decompose(
    quaternions: torch.Tensor, deviations: torch.Tensor, stretch: tuple[float, float, float]
) -> tuple[torch.Tensor, torch.Tensor]:
    means = torch.rand(len(deviations), 3)
    moved, scales_out, quaternions_out = (
        tensor.cpu()
        for tensor in fused.unproject(means.to(DEVICE), deviations.to(DEVICE), quaternions.to(DEVICE), stretch)
    )
    torch.testing.assert_close(moved, means * torch.tensor(stretch), rtol=1e-7, atol=0)
    return quaternions_out, scales_out


@pytest.fixture(params=["plain", "fused"])
def decompose(request: pytest.FixtureRequest) -> Decompose:
    return plain.decompose if request.param == "plain" else fused_decompose


def scales(kind: str, generator: torch.Generator) -> torch.Tensor:
    """Return standard deviations down to 1e-6, with ratios up to 1e4."""

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    if kind == "ratio up to 1e4":
        return 10 ** (uniform(NUM, 3) * 4 - 6)
    if kind == "equal":
        return (10 ** (uniform(NUM, 1) * 4 - 6)).repeat(1, 3)
    if kind == "two equal and a thin one":
        return 10 ** (-2 * uniform(NUM, 1)) * torch.tensor([1.0, 1.0, 1e-4])
    if kind == "one long":
        return 10 ** (-2 * uniform(NUM, 1)) * torch.tensor([1e-4, 1.0, 1e-4])
    return 1e-3 * (1 + 1e-6 * uniform(NUM, 3))  # nearly equal


def stretched(quaternions: torch.Tensor, deviations: torch.Tensor, stretch: tuple[float, ...]) -> Matrices:
    """Return L R S in float64."""
    rotation = Rotation.from_quat(quaternions.double().numpy(), scalar_first=True).as_matrix()
    exact: Matrices = np.array(stretch)[:, None] * rotation * deviations.double().numpy()[:, None, :]
    return exact


@pytest.mark.parametrize("lens", [*STRETCHES, *TELESCOPES])
@pytest.mark.parametrize("kind", ["ratio up to 1e4", "equal", "two equal and a thin one", "one long", "nearly equal"])
def test_scales_and_covariances_match_float64(decompose: Decompose, lens: str, kind: str) -> None:
    stretch = (STRETCHES | TELESCOPES)[lens]
    generator = torch.Generator().manual_seed(3)
    quaternions = torch.randn(NUM, 4, generator=generator) * 10 ** torch.randn(NUM, 1, generator=generator)
    deviations = scales(kind, generator)
    exact = stretched(quaternions, deviations, stretch)
    quaternions_out, scales_out = decompose(quaternions, deviations, stretch)

    expected = np.linalg.svd(exact, compute_uv=False)
    limit = SCALE_LIMIT if lens in STRETCHES else TELESCOPE_SCALE_LIMIT
    assert np.abs(scales_out.double().numpy() / expected - 1).max() <= limit

    axes = Rotation.from_quat(quaternions_out.double().numpy(), scalar_first=True).as_matrix()
    factors = axes * scales_out.double().numpy()[:, None, :]
    covariances, expected_covariances = (f @ f.transpose(0, 2, 1) for f in (factors, exact))
    error = np.linalg.norm(covariances - expected_covariances, axis=(1, 2))
    assert (error / np.linalg.norm(expected_covariances, axis=(1, 2))).max() < COVARIANCE_LIMIT

    lengths = np.linalg.norm(quaternions_out.double().numpy(), axis=1)
    assert np.abs(lengths - 1).max() < 1e-6
    assert (quaternions_out[:, 0] >= 0).all()


def test_a_mirroring_stretch_results_in_rotations(decompose: Decompose) -> None:
    """If L has a negative determinant, the last axis is flipped, which leaves the covariance the same."""
    generator = torch.Generator().manual_seed(4)
    quaternions, deviations = torch.randn(NUM, 4, generator=generator), scales("ratio up to 1e4", generator)
    stretch = (-0.5, 0.4, 1.0)
    exact = stretched(quaternions, deviations, stretch)
    assert (np.linalg.det(exact) < 0).all()
    quaternions_out, scales_out = decompose(quaternions, deviations, stretch)
    rotation = e3nn.o3.quaternion_to_matrix(quaternions_out.double())  # e3nn also puts the real part first
    assert torch.allclose(torch.linalg.det(rotation), torch.ones(NUM, dtype=torch.float64), atol=1e-5)
    assert np.abs(scales_out.double().numpy() / np.linalg.svd(exact, compute_uv=False) - 1).max() <= SCALE_LIMIT


@pytest.mark.parametrize("length", [1e-43, 1e-37, 1e-20, 1e-9, 3e9, 1e20, 1e37])
def test_the_length_of_a_quaternion_does_not_matter(decompose: Decompose, length: float) -> None:
    generator = torch.Generator().manual_seed(7)
    quaternions, deviations = torch.randn(NUM, 4, generator=generator), scales("ratio up to 1e4", generator)
    scaled = quaternions * length
    exact = stretched(scaled.double() / length, deviations, STRETCHES["landscape"])
    _, scales_out = decompose(scaled, deviations, STRETCHES["landscape"])
    assert np.abs(scales_out.double().numpy() / np.linalg.svd(exact, compute_uv=False) - 1).max() <= SCALE_LIMIT


@pytest.mark.parametrize("size", [1e-25, 1e-12, 1e12, 1e25])
def test_tiny_and_huge_gaussians_are_equally_precise(decompose: Decompose, size: float) -> None:
    generator = torch.Generator().manual_seed(8)
    quaternions, deviations = torch.randn(NUM, 4, generator=generator), scales("ratio up to 1e4", generator) * size
    exact = stretched(quaternions, deviations, STRETCHES["landscape"])
    _, scales_out = decompose(quaternions, deviations, STRETCHES["landscape"])
    assert np.abs(scales_out.double().numpy() / np.linalg.svd(exact, compute_uv=False) - 1).max() <= SCALE_LIMIT


def test_the_identity_keeps_gaussians_with_ordered_scales(decompose: Decompose) -> None:
    generator = torch.Generator().manual_seed(5)
    rotation = torch.from_numpy(Rotation.random(NUM, random_state=5).as_matrix())
    quaternions = e3nn.o3.matrix_to_quaternion(rotation).float()
    deviations = torch.tensor([3.0, 1.0, 0.1]) * (1 + 0.1 * torch.rand(NUM, 1, generator=generator))
    quaternions_out, scales_out = decompose(quaternions, deviations, (1.0, 1.0, 1.0))
    torch.testing.assert_close(scales_out, deviations, rtol=1e-6, atol=0)
    back = e3nn.o3.quaternion_to_matrix(quaternions_out.double())
    # Axes have no sign, so the first two may be reversed.
    alignment = (back * rotation).sum(dim=1)
    torch.testing.assert_close(back, rotation * alignment.sign().unsqueeze(1), rtol=0, atol=3e-6)


@pytest.mark.parametrize("angle_degrees", [0.0, 1e-4, 90.0, 120.0, 179.999, 180.0])
@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1), (-1, 2, -3)])
def test_quaternions_are_right_at_the_corners_of_the_rotations(
    decompose: Decompose, angle_degrees: float, axis: tuple[int, int, int]
) -> None:
    vector = np.radians(angle_degrees) * np.array(axis) / np.linalg.norm(axis)
    rotation = Rotation.from_rotvec(vector)
    quaternion = torch.from_numpy(rotation.as_quat(scalar_first=True)).float().unsqueeze(0)
    quaternions_out, _ = decompose(quaternion, torch.tensor([[3.0, 2.0, 1.0]]), (1.0, 1.0, 1.0))
    back = Rotation.from_quat(quaternions_out[0].double().numpy(), scalar_first=True)
    # Axes have no sign: compare each axis with its counterpart up to a flip.
    alignment = np.abs(np.diag(back.as_matrix().T @ rotation.as_matrix()))
    np.testing.assert_allclose(alignment, 1, atol=1e-6)


def test_degenerate_gaussians_stay_finite(decompose: Decompose) -> None:
    quaternions = torch.tensor([[0.0, 0, 0, 0], [1.0, 2, 3, 4], [1e-12, 0, 0, 1e-12], [1, 0, 0, 0]])
    deviations = torch.tensor([[1e-6, 1e-6, 1e-6], [0.0, 0.0, 0.0], [1e-20, 1e-20, 1e-24], [0.0, 5.0, 0.0]])
    quaternions_out, scales_out = decompose(quaternions, deviations, (0.5, 0.4, 1.0))
    assert quaternions_out.isfinite().all()
    assert scales_out.isfinite().all()
    np.testing.assert_allclose(quaternions_out.norm(dim=-1), 1, atol=1e-6)
    np.testing.assert_allclose(scales_out[0], [1e-6, 5e-7, 4e-7], rtol=1e-6)  # Zero counts as the identity.
    np.testing.assert_allclose(scales_out[3], [2.0, 0, 0], atol=1e-7)


@pytest.mark.parametrize("num", [0, 1, 127, 128, 129])
def test_the_result_does_not_depend_on_chunks(decompose: Decompose, num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "_CPU_CHUNK", 128)
    monkeypatch.setattr(fused, "_BLOCK", 128)
    generator = torch.Generator().manual_seed(6)
    quaternions = torch.randn(num, 4, generator=generator)
    deviations = torch.rand(num, 3, generator=generator) + 0.1
    quaternions_out, scales_out = decompose(quaternions, deviations, (0.5, 0.4, 1.0))
    assert quaternions_out.shape == (num, 4)
    if num:
        last_quaternion, last_scales = decompose(quaternions[-1:], deviations[-1:], (0.5, 0.4, 1.0))
        torch.testing.assert_close(quaternions_out[-1:], last_quaternion)
        torch.testing.assert_close(scales_out[-1:], last_scales)

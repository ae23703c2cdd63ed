"""Spherical harmonics, compared with scipy's and e3nn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from e3nn import o3
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from scipy.special import sph_harm_y

from sharp_cog.geometry.harmonics import basis, half_turn_about_x, rotated, with_degree
from tests.splats import random_gaussians, with_harmonics

# e3nn's polar axis is y, so its x, y, z are the y, z, x of 3D Gaussian Splatting; its phase is not Condon-Shortley's.
_TO_E3NN = [1, 2, 0]
_PHASE = torch.tensor([(-1.0) ** m for l in range(1, 5) for m in range(-l, l + 1)])  # noqa: E741
_HALF_TURN = torch.tensor([1.0, -1.0, -1.0])


def directions(num: int = 200) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    poles = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    return torch.cat([poles, torch.nn.functional.normalize(torch.randn(num, 3, generator=generator), dim=-1)])


def scipys_basis(unit: torch.Tensor, degree: int) -> NDArray[np.float64]:
    """Return the real harmonics, made of scipy's complex ones, which have the Condon-Shortley phase."""
    x, y, z = unit.double().numpy().T
    polar, azimuth = np.arccos(z.clip(-1, 1)), np.arctan2(y, x)
    columns = []
    for l in range(1, degree + 1):  # noqa: E741
        for m in range(-l, l + 1):
            values = sph_harm_y(l, abs(m), polar, azimuth)
            columns.append(values.real if m == 0 else np.sqrt(2) * (values.real if m > 0 else values.imag))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_the_basis_is_scipys(degree: int) -> None:
    np.testing.assert_allclose(basis(directions(), degree), scipys_basis(directions(), degree), atol=2e-6)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_the_basis_is_e3nns(degree: int) -> None:
    unit = directions()
    theirs = o3.spherical_harmonics(list(range(1, degree + 1)), unit[:, _TO_E3NN], True, normalization="integral")
    torch.testing.assert_close(basis(unit, degree), theirs * _PHASE[: theirs.shape[1]], rtol=0, atol=2e-6)


def test_the_basis_of_degree_1_is_minus_y_z_minus_x() -> None:
    """3D Gaussian Splatting's own order and signs."""
    unit = directions()
    x, y, z = unit.unbind(-1)
    torch.testing.assert_close(basis(unit, 1), 0.4886025119 * torch.stack([-y, z, -x], dim=-1))


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_a_half_turn_about_x_changes_the_signs_of_e3nns_rotation_matrices(degree: int) -> None:
    turn = torch.diag(_HALF_TURN)[_TO_E3NN][:, _TO_E3NN]
    irreps = o3.Irreps([(1, (l, 1)) for l in range(1, degree + 1)])  # noqa: E741
    num_bands = (degree + 1) ** 2 - 1
    torch.testing.assert_close(torch.diag(half_turn_about_x(num_bands)), irreps.D_from_matrix(turn), rtol=0, atol=1e-5)


def test_turned_harmonics_show_turned_directions_the_same_value() -> None:
    unit = directions()
    torch.testing.assert_close(basis(unit * _HALF_TURN, 4), basis(unit, 4) * half_turn_about_x(24), rtol=0, atol=1e-6)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_rotated_coefficients_show_the_rotated_colours(degree: int) -> None:
    """What was seen in a direction is seen in the rotated direction; the half turn agrees with its signs."""
    generator = np.random.default_rng(degree)
    turn = Rotation.random(random_state=generator)
    directions = torch.from_numpy(generator.normal(size=(50, 3)))
    directions = torch.nn.functional.normalize(directions, dim=-1)
    harmonics = torch.from_numpy(generator.normal(size=(7, (degree + 1) ** 2 - 1, 3)))
    before = torch.einsum("dk,nkc->dnc", basis(directions, degree), harmonics)
    moved = torch.from_numpy(turn.apply(directions))
    after = torch.einsum("dk,nkc->dnc", basis(moved, degree), rotated(harmonics, turn.as_matrix()))
    torch.testing.assert_close(after, before)
    half_turn = rotated(harmonics, np.diag([1.0, -1.0, -1.0]))
    torch.testing.assert_close(half_turn, harmonics * half_turn_about_x(harmonics.shape[1]).unsqueeze(-1).double())


def test_degrees_are_cut_off_and_filled_with_zeros() -> None:
    whole = with_harmonics(random_gaussians(4), 2)
    assert whole.harmonics is not None
    assert with_degree(whole, 2) is whole
    assert with_degree(whole, 0).harmonics is None
    for degree, num_kept in ((1, 3), (3, 8)):
        changed = with_degree(whole, degree)
        assert changed.degree == degree
        assert changed.harmonics is not None
        assert torch.equal(changed.harmonics[:, :num_kept], whole.harmonics[:, :num_kept])
        assert not changed.harmonics[:, num_kept:].any()
    assert with_degree(random_gaussians(4), 3).degree == 3

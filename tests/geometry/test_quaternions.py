"""Signs, products and matrices of quaternions."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from sharp_cog.geometry.quaternions import canonicalize, from_matrix, multiply, to_matrix


def test_the_real_part_is_not_negative_and_the_rotation_stays() -> None:
    quaternions = torch.nn.functional.normalize(torch.randn(100, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    canonical = canonicalize(quaternions)
    assert (canonical[:, 0] >= 0).all()
    torch.testing.assert_close((canonical * quaternions).sum(-1).abs(), torch.ones(100))
    assert torch.equal(canonicalize(-quaternions), canonical)
    assert torch.equal(canonicalize(canonical), canonical)


def test_a_real_part_of_zero_stays_as_it_is() -> None:
    quaternions = torch.tensor([[0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.6, -0.8]])
    assert torch.equal(canonicalize(quaternions), quaternions)
    assert canonicalize(torch.empty(0, 4)).shape == (0, 4)


def test_products_and_matrices_agree_with_scipy() -> None:
    """Half turns too, whose real part is zero."""
    generator = np.random.default_rng(0)
    quaternions = generator.normal(size=(50, 4))
    quaternions[:3] = np.eye(4)[1:]
    rotations = Rotation.from_quat(quaternions, scalar_first=True)
    wxyz = rotations.as_quat(scalar_first=True)
    for rotation, quaternion in zip(rotations, wxyz, strict=True):
        np.testing.assert_allclose(to_matrix(tuple(quaternion)), rotation.as_matrix(), atol=1e-12)
        found = np.array(from_matrix(rotation.as_matrix()))
        assert found[0] >= 0
        assert abs(found @ quaternion) > 1 - 1e-12
    products = multiply(torch.from_numpy(wxyz), torch.from_numpy(wxyz[::-1].copy())).numpy()
    expected = (rotations * rotations[::-1]).as_quat(scalar_first=True)
    np.testing.assert_allclose(np.abs((products * expected).sum(axis=1)), 1, atol=1e-12)

"""Unit quaternions in the order w, x, y, z, with the real part first."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def canonicalize(quaternions_wxyz: Tensor) -> Tensor:
    """Return the quaternions (N, 4) with w >= 0, since q and -q are the same rotation."""
    return quaternions_wxyz * torch.where(quaternions_wxyz[:, :1] < 0, -1.0, 1.0)


def multiply(first_wxyz: Tensor, second_wxyz: Tensor) -> Tensor:
    """Return the products (N, 4): the rotation by the second quaternion, followed by the one by the first."""
    a, b = first_wxyz.unbind(-1), second_wxyz.unbind(-1)
    return torch.stack(
        [
            a[0] * b[0] - a[1] * b[1] - a[2] * b[2] - a[3] * b[3],
            a[0] * b[1] + a[1] * b[0] + a[2] * b[3] - a[3] * b[2],
            a[0] * b[2] - a[1] * b[3] + a[2] * b[0] + a[3] * b[1],
            a[0] * b[3] + a[1] * b[2] - a[2] * b[1] + a[3] * b[0],
        ],
        dim=-1,
    )


def from_matrix(rotation: NDArray[np.float64]) -> list[float]:
    """Return the unit quaternion w x y z, with w >= 0, of a rotation matrix (3, 3).

    It is the eigenvector of the largest eigenvalue of a symmetric matrix (Bar-Itzhack, 2000), which is as exact for
    half turns as for small angles.
    """
    trace = float(np.trace(rotation))
    symmetric = np.empty((4, 4))
    symmetric[0, 0] = trace
    symmetric[1:, 1:] = rotation + rotation.T - trace * np.eye(3)
    symmetric[0, 1:] = symmetric[1:, 0] = [
        rotation[2, 1] - rotation[1, 2],
        rotation[0, 2] - rotation[2, 0],
        rotation[1, 0] - rotation[0, 1],
    ]
    wxyz = np.linalg.eigh(symmetric).eigenvectors[:, -1]
    quaternion: list[float] = (wxyz if wxyz[0] >= 0 else -wxyz).tolist()
    return quaternion


def to_matrix(quaternion_wxyz: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """Return the rotation matrix (3, 3) of a unit quaternion."""
    w, x, y, z = quaternion_wxyz
    vector = np.array([x, y, z])
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    matrix: NDArray[np.float64] = (w * w - vector @ vector) * np.eye(3) + 2 * np.outer(vector, vector) + 2 * w * cross
    return matrix

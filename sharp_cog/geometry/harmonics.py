"""Real spherical harmonics: colours of Gaussians that depend on the direction of view.

The basis is that of 3D Gaussian Splatting (Kerbl et al., 2023): real, orthonormal, with the Condon-Shortley phase, and
for each degree l the orders m from -l to l. Direction is from the camera to the Gaussian, in the axes of the means.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharp_cog.geometry.gaussians import MAX_DEGREE, NUM_BANDS, Gaussians


def basis(directions: Tensor, degree: int) -> Tensor:
    """Evaluate the spherical harmonics above degree 0.

    The associated Legendre polynomials and the sines and cosines of multiples of the azimuth follow from their
    recurrences, in terms of x, y and z (Sloan, "Efficient Spherical Harmonic Evaluation", 2013).

    Args:
        directions: (N, 3), unit.
        degree: Highest degree, 1 to `MAX_DEGREE`.

    Returns:
        (N, K), K = (degree + 1)^2 - 1.
    """
    x, y, z = directions.unbind(-1)
    bands = directions.new_empty(len(directions), NUM_BANDS[degree])
    # Both are multiplied by the sine of the polar angle to the power m, which the polynomials below leave out.
    cosine, sine = torch.ones_like(x), torch.zeros_like(x)
    first = 1.0
    for m in range(degree + 1):
        before, legendre = torch.zeros_like(z), torch.full_like(z, first)
        for l in range(m, degree + 1):  # noqa: E741 - the degree's usual name
            if l > m:
                before, legendre = legendre, ((2 * l - 1) * z * legendre - (l + m - 1) * before) / (l - m)
            if l == 0:
                continue
            factor = math.sqrt((2 * l + 1) / (4 * math.pi) * math.factorial(l - m) / math.factorial(l + m))
            middle = l * l + l - 1  # Column of order 0; degree 0 has none.
            if m == 0:
                bands[:, middle] = factor * legendre
            else:
                weighted = math.sqrt(2.0) * factor * legendre
                bands[:, middle + m] = weighted * cosine
                bands[:, middle - m] = weighted * sine
        cosine, sine = x * cosine - y * sine, x * sine + y * cosine
        first *= -(2 * m + 1)
    return bands


def half_turn_about_x(num_bands: int) -> Tensor:
    """Return the factors (K,) by which a rotation by 180 degrees about x changes the coefficients.

    The rotation maps (x, y, z) to (x, -y, -z). There each function of the basis is even or odd: its polynomial in z has
    the parity of l - m, and the sines of negative orders are odd in y.
    """
    orders = [(degree, order) for degree in range(1, MAX_DEGREE + 1) for order in range(-degree, degree + 1)]
    signs = [(-1.0) ** (degree + abs(order)) * (-1.0 if order < 0 else 1.0) for degree, order in orders]
    return torch.tensor(signs[:num_bands])


def rotated(harmonics: Tensor, rotation: NDArray[np.float64]) -> Tensor:
    """Return the coefficients after a rotation of the scene.

    A rotation maps the functions of a degree to sums of each other. Those sums follow exactly from the values of the
    functions in more directions than there are functions: f(R^T d) of the old coefficients is f(d) of the new ones.

    Args:
        harmonics: (N, K, 3).
        rotation: (3, 3), orthogonal, or mirroring; it maps old coordinates to new ones.
    """
    num_bands = harmonics.shape[1]
    degree = NUM_BANDS.index(num_bands)
    # Directions on a spiral, which no rotation maps onto a plane or a cone.
    steps = torch.arange(4 * num_bands, dtype=torch.float64)
    z = 1.0 - (2.0 * steps + 1.0) / len(steps)
    azimuth = steps * math.pi * (3.0 - math.sqrt(5.0))
    radius = (1.0 - z * z).sqrt()
    directions = torch.stack([radius * azimuth.cos(), radius * azimuth.sin(), z], dim=-1)
    before = basis(directions @ torch.from_numpy(rotation), degree)
    change = torch.linalg.lstsq(basis(directions, degree), before).solution
    return torch.einsum("kj,njc->nkc", change.to(harmonics.device, harmonics.dtype), harmonics)


def with_degree(gaussians: Gaussians, degree: int) -> Gaussians:
    """Return the Gaussians with harmonics up to a degree: higher ones are dropped, missing ones are zeros."""
    if degree == gaussians.degree:
        return gaussians
    if degree == 0:
        return replace(gaussians, harmonics=None)
    harmonics = gaussians.means.new_zeros(len(gaussians), NUM_BANDS[degree], 3)
    if gaussians.harmonics is not None:
        num_kept = min(NUM_BANDS[degree], gaussians.harmonics.shape[1])
        harmonics[:, :num_kept] = gaussians.harmonics[:, :num_kept]
    return replace(gaussians, harmonics=harmonics)

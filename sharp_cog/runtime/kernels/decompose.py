"""Principal axes and standard deviations of stretched Gaussians, without forming covariances.

A Gaussian with axes R and standard deviations s, stretched by a diagonal L, has the covariance (L R S)(L R S)^T. Its
new axes and deviations are the left singular vectors and the singular values of L R S. Squaring that matrix into the
covariance would halve the digits; one-sided Jacobi (Hestenes, 1958) works on the matrix itself and finds even its
smallest singular value to high relative precision (Demmel and Veselic, "Jacobi's method is more accurate than QR",
1992), because the columns of L R S are those of L R, scaled. The error grows with the spread of L alone: the relative
error of a scale stays below 2e-6 if the largest entry of L is up to 20 times the smallest, and below 4e-6 at 500 times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sharp_cog.geometry.principal_axes import Column, largest, orthogonalize, power_of_two, sorted_axes

_CPU_CHUNK = 1 << 17
"""Gaussians at a time on a CPU: few enough for the caches, and enough to make the overhead of torch's calls and threads
negligible. The best of the measured sizes from 8,192 on, on an idle and on a busy machine."""

SMALL = 2.0**-64
"""Length of a quaternion below which its components are scaled up, since they may be subnormal."""

GRID = 1024.0
"""Steps per unit of the grid on which products of quaternion components are exact, see `_stretched_axes`."""


def decompose(quaternions_wxyz: Tensor, scales: Tensor, stretch: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """Decompose stretched Gaussians.

    The code is the same on every device, with a fixed number of steps and no branch that depends on data.

    Args:
        quaternions_wxyz: (N, 4) float32, real part first, of any length; zero stands for the identity.
        scales: (N, 3) float32, standard deviations, not negative.
        stretch: The diagonal of L.

    Returns:
        Unit quaternions (N, 4) with w >= 0, and scales (N, 3), largest first.
    """
    quaternions_out = torch.empty_like(quaternions_wxyz)
    scales_out = torch.empty_like(scales)
    # A GPU takes all Gaussians at once. `range` needs a step of at least 1, even without Gaussians.
    chunk = _CPU_CHUNK if scales.device.type == "cpu" else max(1, len(scales))
    for start in range(0, len(scales), chunk):
        part = slice(start, start + chunk)
        columns, norms = orthogonalize(_stretched_axes(quaternions_wxyz[part], scales[part], stretch))
        quaternion, lengths = sorted_axes(columns, norms)
        for index, component in enumerate(quaternion):
            quaternions_out[part, index] = component
        for index, length in enumerate(lengths):
            scales_out[part, index] = length
    return quaternions_out, scales_out


def _stretched_axes(
    quaternions_wxyz: Tensor, scales: Tensor, stretch: tuple[float, float, float]
) -> tuple[Column, Column, Column]:
    """Return the columns of L R S, each entry to the relative precision of float32.

    An entry of R is a difference, such as x y - w z. Where it nearly cancels, its rounding error is small compared with
    R, but not with a row that L makes small, or a column that S makes small. Therefore each component is split into a
    multiple of 1 / GRID and a rest. Components are below 2, so products of the multiples, and the sums of products that
    make an entry, fit in 24 bits and are exact. The rest is so small that its rounding does not matter.
    """
    # One contiguous tensor (n,) for each component: twice as fast on a CPU as operations on (n, 4).
    whole = [component.contiguous() for component in quaternions_wxyz.unbind(-1)]
    peak = largest(whole)
    # Subnormal numbers have no exponent to read their power of two from, so they are scaled to normal ones first.
    lift = torch.where(peak < SMALL, 1.0 / SMALL, 1.0)
    # The largest component becomes 1 or more and less than 2. Any length will do, since |q|^2 is divided out below, and
    # a power of two rounds nothing.
    unit = power_of_two(peak * lift)
    whole = [component * lift / unit for component in whole]
    whole[0] += peak == 0  # The identity.
    # GRID is a power of two, and a component has 24 bits, so both parts are exact.
    coarse = [(component * GRID).round_().div_(GRID) for component in whole]
    fine = [component - part for component, part in zip(whole, coarse, strict=True)]

    def product(first: int, second: int, factor: float) -> tuple[Tensor, Tensor]:
        """Return a product of two components, times 1 or 2, as its exact part and the rest."""
        # a b = a_coarse b_coarse + a_coarse b_fine + a_fine b.
        exact, rest = coarse[first] * coarse[second], coarse[first] * fine[second]
        rest.addcmul_(fine[first], whole[second])
        return (exact, rest) if factor == 1.0 else (exact.mul_(factor), rest.mul_(factor))

    ww, xx, yy, zz = (product(index, index, 1.0) for index in range(4))
    xy, xz, yz = product(1, 2, 2.0), product(1, 3, 2.0), product(2, 3, 2.0)
    wx, wy, wz = product(0, 1, 2.0), product(0, 2, 2.0), product(0, 3, 2.0)
    # |q|^2 R, column by column. Its diagonal is ww + xx - yy - zz and so on, its other entries are 2 (xy - wz) and so
    # on; the parts are added up separately and joined last.
    w_x, y_z = _sum(ww, xx), _sum(yy, zz)
    w_less_x, y_less_z = _difference(ww, xx), _difference(yy, zz)
    rotation = (
        (_join(_difference(w_x, y_z)), _join(_sum(xy, wz)), _join(_difference(xz, wy))),
        (_join(_difference(xy, wz)), _join(_sum(w_less_x, y_less_z)), _join(_sum(yz, wx))),
        (_join(_sum(xz, wy)), _join(_difference(yz, wx)), _join(_difference(w_less_x, y_less_z))),
    )
    # Divided out together with S. Normalising q first would round its components, and an entry of R that nearly cancels
    # would show it.
    per_length = _join(_sum(w_x, y_z)).reciprocal_()
    first, second, third = (
        [component.mul_(factor).mul_(deviation) for component, factor in zip(axis, stretch, strict=True)]
        for axis, deviation in zip(rotation, (scale * per_length for scale in scales.unbind(-1)), strict=True)
    )
    return first, second, third


def _sum(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return first[0] + second[0], first[1] + second[1]


def _difference(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return first[0] - second[0], first[1] - second[1]


def _join(parts: tuple[Tensor, Tensor]) -> Tensor:
    return parts[0] + parts[1]

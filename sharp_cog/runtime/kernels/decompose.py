"""Principal axes and standard deviations of stretched Gaussians, without forming covariances.

A Gaussian with axes R and standard deviations s, stretched by a diagonal L, has the covariance (L R S)(L R S)^T. Its
new axes and deviations are the left singular vectors and the singular values of L R S. Squaring that matrix into the
covariance would halve the digits; one-sided Jacobi (Hestenes, 1958) works on the matrix itself and finds even its
smallest singular value to high relative precision (Demmel and Veselic, "Jacobi's method is more accurate than QR",
1992), because the columns of L R S are those of L R, scaled. The error grows with the spread of L alone: the relative
error of a scale stays below 2e-6 if the largest entry of L is up to 20 times the smallest, and below 4e-6 at 500 times.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor

NUM_SWEEPS = 4
"""Number of sweeps over the three pairs of columns. A fifth sweep changes nothing; the tests show it."""

_CPU_CHUNK = 1 << 17
"""Gaussians at a time on a CPU: few enough for the caches, and enough to make the overhead of torch's calls and threads
negligible. The best of the measured sizes from 8,192 on, on an idle and on a busy machine."""

TINY = 1e-30
"""Smallest norm to divide by."""

LEAST_SQUARE = 1e-37
"""Smallest square of a divisor, which keeps the angle of two zero columns finite."""

SMALL = 2.0**-64
"""Length of a quaternion below which its components are scaled up, since they may be subnormal."""

GRID = 1024.0
"""Steps per unit of the grid on which products of quaternion components are exact, see `_stretched_axes`."""

Column = list[Tensor]
"""The three components of a vector for each of n Gaussians, each (n,)."""


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
        columns, norms = _jacobi(_stretched_axes(quaternions_wxyz[part], scales[part], stretch))
        quaternion, lengths = _sorted_axes(columns, norms)
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
    largest = _largest(whole)
    # Subnormal numbers have no exponent to read their power of two from, so they are scaled to normal ones first.
    lift = torch.where(largest < SMALL, 1.0 / SMALL, 1.0)
    # The largest component becomes 1 or more and less than 2. Any length will do, since |q|^2 is divided out below, and
    # a power of two rounds nothing.
    unit = _power_of_two(largest * lift)
    whole = [component * lift / unit for component in whole]
    whole[0] += largest == 0  # The identity.
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


def _largest(components: Iterable[Tensor]) -> Tensor:
    """Return the largest magnitude among the components, (n,)."""
    return reduce(torch.maximum, (component.abs() for component in components))


def _power_of_two(values: Tensor) -> Tensor:
    """Return the power of two at or below each float32, never 0 or subnormal; dividing by it is exact."""
    exponent_bits = values.clamp(min=torch.finfo(torch.float32).tiny).view(torch.int32) & 0x7F80_0000
    return exponent_bits.view(torch.float32)


def _jacobi(matrix: tuple[Column, Column, Column]) -> tuple[list[Column], Column]:
    """Rotate three columns until they are orthogonal; return them as unit vectors, and their norms."""
    # Relative to the largest entry, so that no square over- or underflows.
    unit = _power_of_two(_largest(component for column in matrix for component in column))
    columns = [[component / unit for component in column] for column in matrix]
    one, least = unit.new_tensor(1.0), unit.new_tensor(LEAST_SQUARE)
    for _ in range(NUM_SWEEPS):
        # Computed again in each sweep, because the updates below add up their rounding errors.
        squares = [_dot(column, column) for column in columns]
        for p, q in ((0, 1), (0, 2), (1, 2)):
            first, second = columns[p], columns[q]
            dot = _dot(first, second)
            twice, gap = 2.0 * dot, squares[q] - squares[p]
            # The smaller root of t^2 + (2 gap / twice) t - 1, as a quotient whose divisor is never zero. It rotates by
            # at most 45 degrees, with which the sweeps converge.
            root = torch.addcmul(least, gap, gap).addcmul_(twice, twice).sqrt_()
            tangent = twice.div_(root.copysign_(gap).add_(gap))
            cosine = torch.addcmul(one, tangent, tangent).rsqrt_()
            # With t and c, the tangent and the cosine of the angle: p becomes c (p - t q), and q becomes c (q + t p).
            pairs = list(zip(first, second, strict=True))
            columns[p] = [torch.addcmul(a, tangent, b, value=-1.0).mul_(cosine) for a, b in pairs]
            columns[q] = [torch.addcmul(b, tangent, a).mul_(cosine) for a, b in pairs]
            # The squares of the rotated columns. Their rounding changes later angles a little, but not the result.
            squares[p].addcmul_(tangent, dot, value=-1.0)
            squares[q].addcmul_(tangent, dot)
    norms = [_dot(column, column).sqrt_() for column in columns]
    for column, norm in zip(columns, norms, strict=True):
        # The axis of a Gaussian without extent stays zero.
        inverse = norm.clamp(min=TINY).reciprocal_()
        for component in column:
            component.mul_(inverse)
    return columns, [norm.mul_(unit) for norm in norms]


def _dot(first: Column, second: Column) -> Tensor:
    """Return dot products, (n,)."""
    return (first[0] * second[0]).addcmul_(first[1], second[1]).addcmul_(first[2], second[2])


def _sorted_axes(columns: list[Column], norms: Column) -> tuple[list[Tensor], Column]:
    """Sort axes by norm, largest first; return the four components of their quaternion, and the norms."""
    axes, lengths = list(columns), list(norms)
    # Three exchanges sort three lengths. Masks take the place of branches, because each Gaussian has its own order.
    for p, q in ((0, 1), (1, 2), (0, 1)):
        swaps = (lengths[p] < lengths[q]).to(lengths[p].dtype)
        stays = 1.0 - swaps
        pairs = list(zip(axes[p], axes[q], strict=True))
        axes[p] = [_select(swaps, b, stays, a) for a, b in pairs]
        axes[q] = [_select(swaps, a, stays, b) for a, b in pairs]
        lengths[p], lengths[q] = torch.maximum(lengths[p], lengths[q]), torch.minimum(lengths[p], lengths[q])
    (ax, ay, az), (bx, by, bz) = axes[0], axes[1]
    # The third axis is computed from the first two, so that the axes form a rotation and never a reflection.
    third = [ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx]
    return _quaternion(axes[0], axes[1], third), lengths


def _select(mask: Tensor, chosen: Tensor, opposite: Tensor, other: Tensor) -> Tensor:
    """Return `chosen` where the mask is 1, else `other`; several times faster on a CPU than `torch.where`."""
    # The product of 0 and infinity would be NaN, but unit axes and candidates are finite.
    return (other * opposite).addcmul_(chosen, mask)


def _quaternion(x_axis: Column, y_axis: Column, z_axis: Column) -> list[Tensor]:
    """Return the components w, x, y, z of the unit quaternion, w >= 0, of the rotation with these columns.

    Each row of candidates is the quaternion times four times one of its components (Shepperd, 1978). The row of the
    largest component has no cancellation.
    """
    (m00, m10, m20), (m01, m11, m21), (m02, m12, m22) = x_axis, y_axis, z_axis
    wx, wy, wz = m21 - m12, m02 - m20, m10 - m01
    xy, xz, yz = m10 + m01, m02 + m20, m21 + m12
    candidates = (
        (1.0 + m00 + m11 + m22, wx, wy, wz),
        (wx, 1.0 + m00 - m11 - m22, xy, xz),
        (wy, xy, 1.0 - m00 + m11 - m22, yz),
        (wz, xz, yz, 1.0 - m00 - m11 + m22),
    )
    # The diagonal adds up to 4, so its largest entry is at least 1, and the length below is not zero even where an axis
    # is.
    best, largest = list(candidates[0]), candidates[0][0]
    for index in (1, 2, 3):
        is_larger = (candidates[index][index] > largest).to(largest.dtype)
        is_not = 1.0 - is_larger
        pairs = zip(best, candidates[index], strict=True)
        best = [_select(is_larger, candidate, is_not, component) for component, candidate in pairs]
        largest = torch.maximum(candidates[index][index], largest)
    length = _dot(best[1:], best[1:]).addcmul_(best[0], best[0]).sqrt_()
    inverse = length.copysign_(best[0]).reciprocal_()
    return [component.mul_(inverse) for component in best]

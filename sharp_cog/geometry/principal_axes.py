"""Principal axes and standard deviations of Gaussians from any matrix M with covariance M M^T, by Jacobi rotations.

One-sided Jacobi (Hestenes, 1958) rotates the columns of M until they are orthogonal: their directions are then the
principal axes, and their norms the standard deviations. The code is the same on every device, with a fixed number of
steps and no branch that depends on data.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor

NUM_SWEEPS = 4
"""Number of sweeps over the three pairs of columns. A fifth sweep changes nothing; the tests show it."""

TINY = 1e-30
"""Smallest norm to divide by."""

LEAST_SQUARE = 1e-37
"""Smallest square of a divisor, which keeps the angle of two zero columns finite."""

Column = list[Tensor]
"""The three components of a vector for each of n Gaussians, each (n,)."""


def largest(components: Iterable[Tensor]) -> Tensor:
    """Return the largest magnitude among the components, (n,)."""
    return reduce(torch.maximum, (component.abs() for component in components))


def power_of_two(values: Tensor) -> Tensor:
    """Return the power of two at or below each float32, never 0 or subnormal; dividing by it is exact."""
    exponent_bits = values.clamp(min=torch.finfo(torch.float32).tiny).view(torch.int32) & 0x7F80_0000
    return exponent_bits.view(torch.float32)


def orthogonalize(matrix: tuple[Column, Column, Column]) -> tuple[list[Column], Column]:
    """Rotate three columns until they are orthogonal; return them as unit vectors, and their norms."""
    # Relative to the largest entry, so that no square over- or underflows.
    unit = power_of_two(largest(component for column in matrix for component in column))
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


def sorted_axes(columns: list[Column], norms: Column) -> tuple[list[Tensor], Column]:
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
    best, peak = list(candidates[0]), candidates[0][0]
    for index in (1, 2, 3):
        is_larger = (candidates[index][index] > peak).to(peak.dtype)
        is_not = 1.0 - is_larger
        pairs = zip(best, candidates[index], strict=True)
        best = [_select(is_larger, candidate, is_not, component) for component, candidate in pairs]
        peak = torch.maximum(candidates[index][index], peak)
    length = _dot(best[1:], best[1:]).addcmul_(best[0], best[0]).sqrt_()
    inverse = length.copysign_(best[0]).reciprocal_()
    return [component.mul_(inverse) for component in best]

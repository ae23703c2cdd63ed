"""Principal axes and standard deviations of a stretched Gaussian, without forming its covariance.

A Gaussian with axes R and standard deviations s, stretched by a diagonal L, has the covariance (L R S)(L R S)^T. Its
new axes and deviations are the left singular vectors and the singular values of L R S. Squaring that matrix into the
covariance would halve the digits; one-sided Jacobi (Hestenes, 1958) works on the matrix itself and finds even its
smallest singular value to full relative precision (Demmel and Veselic, "Jacobi's method is more accurate than QR",
1992), because the columns of L R S are those of a well-conditioned matrix, scaled.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_SWEEPS = 4
"""Sweeps over the three pairs of columns; a fifth changes nothing, see the tests."""

_CPU_CHUNK = 1 << 17
"""Gaussians at a time on a CPU, so that the nine columns stay in cache."""
_TINY = 1e-30


def decompose(quaternions_wxyz: Tensor, scales: Tensor, stretch: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """Decomposes stretched Gaussians.

    The same code on every device, with a fixed number of steps and no branch that depends on data.

    Args:
        quaternions_wxyz: (N, 4) float32, real part first, of any length; zero is taken for the identity.
        scales: (N, 3) float32, standard deviations, not negative.
        stretch: The diagonal of L.

    Returns:
        Unit quaternions (N, 4) with w >= 0, and scales (N, 3), largest first.
    """
    quaternions_out = torch.empty_like(quaternions_wxyz)
    scales_out = torch.empty_like(scales)
    chunk = _CPU_CHUNK if scales.device.type == "cpu" else max(1, len(scales))
    for start in range(0, len(scales), chunk):
        part = slice(start, start + chunk)
        columns, norms = _jacobi(_stretched_axes(quaternions_wxyz[part], scales[part], stretch))
        quaternion, scale = _sorted_axes(columns, norms)
        quaternions_out[part] = quaternion.T
        scales_out[part] = scale.T
    return quaternions_out, scales_out


def _stretched_axes(quaternions_wxyz: Tensor, scales: Tensor, stretch: tuple[float, float, float]) -> list[Tensor]:
    """The columns of L R S, each (3, n)."""
    w, x, y, z = quaternions_wxyz.T.contiguous()
    # 2 / |q|^2, which makes R a rotation for a quaternion of any length, and the identity for zero.
    double = 2.0 / (w * w + x * x + y * y + z * z).clamp(min=_TINY)
    xs, ys, zs = x * double, y * double, z * double
    xx, yy, zz = x * xs, y * ys, z * zs
    xy, xz, yz = x * ys, x * zs, y * zs
    wx, wy, wz = w * xs, w * ys, w * zs
    rotation = (
        (1.0 - (yy + zz), xy + wz, xz - wy),
        (xy - wz, 1.0 - (xx + zz), yz + wx),
        (xz + wy, yz - wx, 1.0 - (xx + yy)),
    )
    factor = torch.tensor(stretch, dtype=scales.dtype, device=scales.device).unsqueeze(-1)
    deviations = scales.T.contiguous()
    return [torch.stack(axis) * (factor * deviations[index]) for index, axis in enumerate(rotation)]


def _jacobi(columns: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Rotates three columns, each (3, n), until they are orthogonal; returns them as unit vectors, and their norms."""
    # Relative to the largest entry, so that no square over- or underflows.
    unit = torch.stack([column.abs().amax(dim=0) for column in columns]).amax(dim=0).clamp(min=_TINY)
    columns = [column / unit for column in columns]
    for _ in range(NUM_SWEEPS):
        for p, q in ((0, 1), (0, 2), (1, 2)):
            first, second = columns[p], columns[q]
            twice = 2.0 * _dot(first, second)
            gap = _dot(second, second).sub_(_dot(first, first))
            # The smaller root of t^2 + (2 gap / twice) t - 1, as a quotient that is safe at twice = 0.
            root = torch.hypot(gap, twice).add_(gap.abs()).clamp_(min=_TINY)
            tangent = torch.copysign(twice, twice * gap).div_(root)
            cosine = torch.addcmul(torch.ones_like(tangent), tangent, tangent).rsqrt_()
            columns[p] = torch.addcmul(first, tangent, second, value=-1.0).mul_(cosine)
            columns[q] = torch.addcmul(second, tangent, first).mul_(cosine)
    norms = [_dot(column, column).sqrt_() for column in columns]
    units = [column / norm.clamp(min=_TINY) for column, norm in zip(columns, norms, strict=True)]
    return units, [norm * unit for norm in norms]


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """Dot products of two columns, each (3, n)."""
    total = first[0] * second[0]
    return total.addcmul_(first[1], second[1]).addcmul_(first[2], second[2])


def _sorted_axes(columns: list[Tensor], norms: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Sorts axes by norm, largest first, and turns them into a quaternion: (4, n) and (3, n)."""
    axes, lengths = list(columns), list(norms)
    for p, q in ((0, 1), (1, 2), (0, 1)):
        swap = lengths[p] < lengths[q]
        axes[p], axes[q] = _select(swap, axes[q], axes[p]), _select(swap, axes[p], axes[q])
        lengths[p], lengths[q] = torch.maximum(lengths[p], lengths[q]), torch.minimum(lengths[p], lengths[q])
    (ax, ay, az), (bx, by, bz) = axes[0], axes[1]
    # The third axis follows from the first two, which settles reflections.
    third = torch.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])
    return _quaternion(axes[0], axes[1], third), torch.stack(lengths)


def _select(condition: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """`torch.where` for finite values, which on a CPU is several times slower than this arithmetic."""
    mask = condition.to(chosen.dtype)
    return torch.addcmul(other * (1.0 - mask), chosen, mask)


def _quaternion(x_axis: Tensor, y_axis: Tensor, z_axis: Tensor) -> Tensor:
    """Unit quaternion (4, n), w first and >= 0, of the rotation with these columns, each (3, n).

    Each row of candidates is the quaternion times four times one of its own components (Shepperd, 1978); the row of the
    largest component is the one without cancellation.
    """
    (m00, m10, m20), (m01, m11, m21), (m02, m12, m22) = x_axis, y_axis, z_axis
    candidates = (
        (1.0 + m00 + m11 + m22, m21 - m12, m02 - m20, m10 - m01),
        (m21 - m12, 1.0 + m00 - m11 - m22, m10 + m01, m02 + m20),
        (m02 - m20, m10 + m01, 1.0 - m00 + m11 - m22, m21 + m12),
        (m10 - m01, m02 + m20, m21 + m12, 1.0 - m00 - m11 + m22),
    )
    best, largest = torch.stack(candidates[0]), candidates[0][0]
    for index in (1, 2, 3):
        is_larger = candidates[index][index] > largest
        best = _select(is_larger, torch.stack(candidates[index]), best)
        largest = torch.maximum(candidates[index][index], largest)
    length = torch.addcmul(_dot(best[1:], best[1:]), best[0], best[0]).sqrt_()
    return best / torch.copysign(length, best[0])

"""Unprojection, and the rows of a .ply, each as one Triton kernel that reads and writes every number once.

The plain twins, which explain each step, are `sharp_cog.runtime.kernels.decompose` with `sharp_cog.runtime.unproject`,
and `sharp_cog.formats.ply.vertex_block`. This module needs triton; `sharp_cog.runtime.kernels.choose` imports it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sharp_cog.geometry import principal_axes
from sharp_cog.runtime.kernels import decompose

_BLOCK = 256
"""Gaussians per program."""

_NUM_SWEEPS = tl.constexpr(principal_axes.NUM_SWEEPS)
_GRID = tl.constexpr(decompose.GRID)
_TINY = tl.constexpr(principal_axes.TINY)
_LEAST_SQUARE = tl.constexpr(principal_axes.LEAST_SQUARE)
_SMALL = tl.constexpr(decompose.SMALL)
# The next five repeat constants of `sharp_cog.formats`, which this package must not import. Triton reads no global that
# is not a constexpr.
_SMALLEST_NORMAL = tl.constexpr(1.1754943508222875e-38)
_LARGEST_LENGTH = tl.constexpr(1e38)
_LARGEST_BELOW_1 = tl.constexpr(1.0 - 2.0**-24)
_SH_C0 = tl.constexpr(0.28209479177387814)
_NUM_PROPERTIES = tl.constexpr(14)


def unproject(
    means: Tensor, scales: Tensor, quaternions_wxyz: Tensor, stretch: tuple[float, float, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Stretch Gaussians.

    Args:
        means: (N, 3) float32, of any strides; so are the next two.
        scales: (N, 3).
        quaternions_wxyz: (N, 4), of any length.
        stretch: The diagonal of L.

    Returns:
        Means (N, 3), scales (N, 3) largest first, unit quaternions (N, 4) with w >= 0.
    """
    num = len(means)
    outputs = [torch.empty(num, channels, device=means.device, dtype=torch.float32) for channels in (3, 3, 4)]
    if num:
        with torch.cuda.device_of(means):  # Triton launches on torch's current device.
            _unproject[(triton.cdiv(num, _BLOCK),)](
                *(means, *means.stride(), scales, *scales.stride(), quaternions_wxyz, *quaternions_wxyz.stride()),
                *(*outputs, *stretch, num),
                BLOCK=_BLOCK,
            )
    return outputs[0], outputs[1], outputs[2]


def vertex_rows(
    means: Tensor, colors_linear: Tensor, opacities: Tensor, scales: Tensor, quaternions_wxyz: Tensor
) -> Tensor:
    """Return the rows of a .ply.

    Args:
        means: (N, 3) float32, of any strides; so are the next four.
        colors_linear: (N, 3).
        opacities: (N,).
        scales: (N, 3).
        quaternions_wxyz: (N, 4).

    Returns:
        (N, 14).
    """
    num = len(means)
    rows = torch.empty(num, _NUM_PROPERTIES.value, device=means.device, dtype=torch.float32)
    if num:
        with torch.cuda.device_of(means):
            _vertex_rows[(triton.cdiv(num, _BLOCK),)](
                *(means, *means.stride(), colors_linear, *colors_linear.stride(), opacities, opacities.stride(0)),
                *(scales, *scales.stride(), quaternions_wxyz, *quaternions_wxyz.stride()),
                *(rows, num),
                BLOCK=_BLOCK,
            )
    return rows


def try_out(device: torch.device) -> None:
    """Build the kernels for a device, and run them on sixteen Gaussians with the memory layout of the network's.

    Raises:
        Exception: Any error of triton, if it cannot build or run them.
    """
    num = 16  # A multiple of 16, for which triton builds a special variant, as for the network's number of Gaussians.
    # Transposed, it has the strides (1, N), as the Gaussians of the network do.
    by_channel = torch.ones(4, num, device=device)
    vectors, opacities = by_channel[:3].T, by_channel[0]
    means, scales, quaternions_wxyz = unproject(vectors, vectors, by_channel.T, (1.0, 1.0, 1.0))
    rows = vertex_rows(means, vectors, 0.5 * opacities, scales, quaternions_wxyz)
    # Reading the result waits for the device, so that an error of the launch is raised here and not in a prediction.
    if not rows.isfinite().all():
        raise RuntimeError("the fused kernels return values that are not finite")


@triton.jit
def _power_of_two(values: tl.tensor) -> tl.tensor:
    """Return the power of two at or below each value, and its inverse."""
    bits = tl.maximum(values, _SMALLEST_NORMAL).to(tl.int32, bitcast=True) & 0x7F800000
    # 2^-k by its bits: exact, and cheaper than a division. The inverse of 2^127 would be subnormal, but lengths from
    # there on are beyond `_LARGEST_LENGTH`.
    inverse = tl.maximum(0x7F000000 - bits, 0x00800000)
    return bits.to(tl.float32, bitcast=True), inverse.to(tl.float32, bitcast=True)


@triton.jit
def _halves(component: tl.tensor) -> tl.tensor:
    """Split a component into a multiple of 1 / _GRID and the rest."""
    # Halves are rounded up, in the twin to even. Both splits are exact.
    coarse = tl.floor(component * _GRID + 0.5) * (1.0 / _GRID)
    return coarse, component - coarse


@triton.jit
def _product(coarse_a: tl.tensor, fine_a: tl.tensor, coarse_b: tl.tensor, fine_b: tl.tensor, b: tl.tensor) -> tl.tensor:
    """Return a product of two components as its exact part and the rest."""
    # The first product needs no rounding, so a compiler may turn it into a fused multiply-add without changing it.
    return coarse_a * coarse_b, coarse_a * fine_b + fine_a * b


@triton.jit
def _dot(ax: tl.tensor, ay: tl.tensor, az: tl.tensor, bx: tl.tensor, by: tl.tensor, bz: tl.tensor) -> tl.tensor:
    return ax * bx + ay * by + az * bz


@triton.jit
def _rotate(
    ax: tl.tensor,
    ay: tl.tensor,
    az: tl.tensor,
    bx: tl.tensor,
    by: tl.tensor,
    bz: tl.tensor,
    square_a: tl.tensor,
    square_b: tl.tensor,
) -> tl.tensor:
    """Return two columns after a Jacobi rotation, and their squares."""
    dot = _dot(ax, ay, az, bx, by, bz)
    twice, gap = 2.0 * dot, square_b - square_a
    root = tl.sqrt(gap * gap + twice * twice + _LEAST_SQUARE)
    # Either sign will do for a gap of zero: the angle is 45 degrees in one direction or the other.
    tangent = twice / (tl.where(gap < 0, -root, root) + gap)
    cosine = tl.rsqrt(tangent * tangent + 1.0)
    new_ax, new_ay, new_az = (ax - tangent * bx) * cosine, (ay - tangent * by) * cosine, (az - tangent * bz) * cosine
    new_bx, new_by, new_bz = (bx + tangent * ax) * cosine, (by + tangent * ay) * cosine, (bz + tangent * az) * cosine
    return new_ax, new_ay, new_az, new_bx, new_by, new_bz, square_a - tangent * dot, square_b + tangent * dot


@triton.jit
def _sort(
    ax: tl.tensor, ay: tl.tensor, az: tl.tensor, a: tl.tensor, bx: tl.tensor, by: tl.tensor, bz: tl.tensor, b: tl.tensor
) -> tl.tensor:
    """Return two axes with their lengths, the longer first."""
    swaps = a < b
    return (
        tl.where(swaps, bx, ax),
        tl.where(swaps, by, ay),
        tl.where(swaps, bz, az),
        tl.maximum(a, b),
        tl.where(swaps, ax, bx),
        tl.where(swaps, ay, by),
        tl.where(swaps, az, bz),
        tl.minimum(a, b),
    )


@triton.jit
def _unproject(
    means: tl.tensor,
    means_row: tl.tensor,
    means_column: tl.tensor,
    scales: tl.tensor,
    scales_row: tl.tensor,
    scales_column: tl.tensor,
    quaternions: tl.tensor,
    quaternions_row: tl.tensor,
    quaternions_column: tl.tensor,
    means_out: tl.tensor,
    scales_out: tl.tensor,
    quaternions_out: tl.tensor,
    stretch_x: tl.tensor,
    stretch_y: tl.tensor,
    stretch_z: tl.tensor,
    num: tl.tensor,
    BLOCK: tl.constexpr,  # noqa: N803 - Triton writes constants in capitals
) -> None:
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num

    # Positions. Lanes beyond the last Gaussian load defaults, compute with them and store nothing.
    mean = means + index * means_row
    tl.store(means_out + index * 3, tl.load(mean, mask=inside, other=0.0) * stretch_x, mask=inside)
    tl.store(means_out + index * 3 + 1, tl.load(mean + means_column, mask=inside, other=0.0) * stretch_y, mask=inside)
    tl.store(
        means_out + index * 3 + 2, tl.load(mean + 2 * means_column, mask=inside, other=0.0) * stretch_z, mask=inside
    )

    # The columns of L R S.
    quaternion = quaternions + index * quaternions_row
    w = tl.load(quaternion, mask=inside, other=1.0)
    x = tl.load(quaternion + quaternions_column, mask=inside, other=0.0)
    y = tl.load(quaternion + 2 * quaternions_column, mask=inside, other=0.0)
    z = tl.load(quaternion + 3 * quaternions_column, mask=inside, other=0.0)
    largest = tl.maximum(tl.maximum(tl.abs(w), tl.abs(x)), tl.maximum(tl.abs(y), tl.abs(z)))
    lift = tl.where(largest < _SMALL, 1.0 / _SMALL, 1.0)
    _, inverse = _power_of_two(largest * lift)
    w = tl.where(largest == 0, 1.0, w * lift * inverse)
    x, y, z = x * lift * inverse, y * lift * inverse, z * lift * inverse
    cw, fw = _halves(w)
    cx, fx = _halves(x)
    cy, fy = _halves(y)
    cz, fz = _halves(z)
    ww, ww_rest = _product(cw, fw, cw, fw, w)
    xx, xx_rest = _product(cx, fx, cx, fx, x)
    yy, yy_rest = _product(cy, fy, cy, fy, y)
    zz, zz_rest = _product(cz, fz, cz, fz, z)
    xy, xy_rest = _product(cx, fx, cy, fy, y)
    xz, xz_rest = _product(cx, fx, cz, fz, z)
    yz, yz_rest = _product(cy, fy, cz, fz, z)
    wx, wx_rest = _product(cw, fw, cx, fx, x)
    wy, wy_rest = _product(cw, fw, cy, fy, y)
    wz, wz_rest = _product(cw, fw, cz, fz, z)

    # From here on, cx, cy and cz are the third column, and no longer the coarse parts of x, y and z.
    per_length = 1.0 / (((ww + xx) + (yy + zz)) + ((ww_rest + xx_rest) + (yy_rest + zz_rest)))
    scale = scales + index * scales_row
    first = tl.load(scale, mask=inside, other=0.0) * per_length
    second = tl.load(scale + scales_column, mask=inside, other=0.0) * per_length
    third = tl.load(scale + 2 * scales_column, mask=inside, other=0.0) * per_length
    ax = (((ww + xx) - (yy + zz)) + ((ww_rest + xx_rest) - (yy_rest + zz_rest))) * stretch_x * first
    ay = 2.0 * ((xy + wz) + (xy_rest + wz_rest)) * stretch_y * first
    az = 2.0 * ((xz - wy) + (xz_rest - wy_rest)) * stretch_z * first
    bx = 2.0 * ((xy - wz) + (xy_rest - wz_rest)) * stretch_x * second
    by = (((ww - xx) + (yy - zz)) + ((ww_rest - xx_rest) + (yy_rest - zz_rest))) * stretch_y * second
    bz = 2.0 * ((yz + wx) + (yz_rest + wx_rest)) * stretch_z * second
    cx = 2.0 * ((xz + wy) + (xz_rest + wy_rest)) * stretch_x * third
    cy = 2.0 * ((yz - wx) + (yz_rest - wx_rest)) * stretch_y * third
    cz = (((ww - xx) - (yy - zz)) + ((ww_rest - xx_rest) - (yy_rest - zz_rest))) * stretch_z * third

    # One-sided Jacobi, relative to the largest entry.
    largest_a = tl.maximum(tl.maximum(tl.abs(ax), tl.abs(ay)), tl.abs(az))
    largest_b = tl.maximum(tl.maximum(tl.abs(bx), tl.abs(by)), tl.abs(bz))
    largest_c = tl.maximum(tl.maximum(tl.abs(cx), tl.abs(cy)), tl.abs(cz))
    unit, inverse = _power_of_two(tl.maximum(tl.maximum(largest_a, largest_b), largest_c))
    ax, ay, az = ax * inverse, ay * inverse, az * inverse
    bx, by, bz = bx * inverse, by * inverse, bz * inverse
    cx, cy, cz = cx * inverse, cy * inverse, cz * inverse
    for _ in tl.static_range(_NUM_SWEEPS):
        square_a, square_b = _dot(ax, ay, az, ax, ay, az), _dot(bx, by, bz, bx, by, bz)
        square_c = _dot(cx, cy, cz, cx, cy, cz)
        ax, ay, az, bx, by, bz, square_a, square_b = _rotate(ax, ay, az, bx, by, bz, square_a, square_b)
        ax, ay, az, cx, cy, cz, square_a, square_c = _rotate(ax, ay, az, cx, cy, cz, square_a, square_c)
        bx, by, bz, cx, cy, cz, square_b, square_c = _rotate(bx, by, bz, cx, cy, cz, square_b, square_c)
    a = tl.sqrt(_dot(ax, ay, az, ax, ay, az))
    b = tl.sqrt(_dot(bx, by, bz, bx, by, bz))
    c = tl.sqrt(_dot(cx, cy, cz, cx, cy, cz))
    per_a, per_b, per_c = 1.0 / tl.maximum(a, _TINY), 1.0 / tl.maximum(b, _TINY), 1.0 / tl.maximum(c, _TINY)
    ax, ay, az = ax * per_a, ay * per_a, az * per_a
    bx, by, bz = bx * per_b, by * per_b, bz * per_b
    cx, cy, cz = cx * per_c, cy * per_c, cz * per_c

    # The longest axis first: three exchanges sort three lengths.
    ax, ay, az, a, bx, by, bz, b = _sort(ax, ay, az, a, bx, by, bz, b)
    bx, by, bz, b, cx, cy, cz, c = _sort(bx, by, bz, b, cx, cy, cz, c)
    ax, ay, az, a, bx, by, bz, b = _sort(ax, ay, az, a, bx, by, bz, b)
    tl.store(scales_out + index * 3, a * unit, mask=inside)
    tl.store(scales_out + index * 3 + 1, b * unit, mask=inside)
    tl.store(scales_out + index * 3 + 2, c * unit, mask=inside)

    # The third axis is computed from the first two, which excludes reflections. Then Shepperd's quaternion, in which wx
    # to yz are differences and sums of entries of the rotation, and no longer products of components.
    cx, cy, cz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    wx, wy, wz = bz - cy, cx - az, ay - bx
    xy, xz, yz = ay + bx, cx + az, bz + cy
    best_w, best_x, best_y, best_z = 1.0 + ax + by + cz, wx, wy, wz
    largest = best_w
    # Each of the other three candidates takes the place of the best one if its own component is larger.
    other = 1.0 + ax - by - cz
    is_larger = other > largest
    best_w, best_x = tl.where(is_larger, wx, best_w), tl.where(is_larger, other, best_x)
    best_y, best_z = tl.where(is_larger, xy, best_y), tl.where(is_larger, xz, best_z)
    largest = tl.maximum(largest, other)
    other = 1.0 - ax + by - cz
    is_larger = other > largest
    best_w, best_x = tl.where(is_larger, wy, best_w), tl.where(is_larger, xy, best_x)
    best_y, best_z = tl.where(is_larger, other, best_y), tl.where(is_larger, yz, best_z)
    largest = tl.maximum(largest, other)
    other = 1.0 - ax - by + cz
    is_larger = other > largest
    best_w, best_x = tl.where(is_larger, wz, best_w), tl.where(is_larger, xz, best_x)
    best_y, best_z = tl.where(is_larger, yz, best_y), tl.where(is_larger, other, best_z)
    length = tl.sqrt(best_w * best_w + best_x * best_x + best_y * best_y + best_z * best_z)
    inverse = tl.where(best_w < 0, -1.0, 1.0) / length
    row = quaternions_out + index * 4
    tl.store(row, best_w * inverse, mask=inside)
    tl.store(row + 1, best_x * inverse, mask=inside)
    tl.store(row + 2, best_y * inverse, mask=inside)
    tl.store(row + 3, best_z * inverse, mask=inside)


@triton.jit
def _harmonic(linear: tl.tensor) -> tl.tensor:
    """Return the spherical harmonic of degree 0 of the sRGB value of linear light."""
    magnitude = tl.abs(linear)
    # IEC 61966-2-1, as in `linear_to_srgb`. `tl.maximum` replaces NaN, but NaN takes the linear branch, which keeps it.
    curve = 1.055 * tl.exp(tl.log(tl.maximum(magnitude, 0.0031308)) * (1.0 / 2.4)) - 0.055
    curve = tl.where(linear < 0.0, -curve, curve)
    return (tl.where(magnitude > 0.0031308, curve, linear * 12.92) - 0.5) * (1.0 / _SH_C0)


@triton.jit
def _vertex_rows(
    means: tl.tensor,
    means_row: tl.tensor,
    means_column: tl.tensor,
    colors: tl.tensor,
    colors_row: tl.tensor,
    colors_column: tl.tensor,
    opacities: tl.tensor,
    opacities_row: tl.tensor,
    scales: tl.tensor,
    scales_row: tl.tensor,
    scales_column: tl.tensor,
    quaternions: tl.tensor,
    quaternions_row: tl.tensor,
    quaternions_column: tl.tensor,
    rows: tl.tensor,
    num: tl.tensor,
    BLOCK: tl.constexpr,  # noqa: N803 - Triton writes constants in capitals
) -> None:
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num
    row = rows + index * _NUM_PROPERTIES
    # Columns of a row: position 0 to 2, colour 3 to 5, opacity 6, scales 7 to 9, quaternion 10 to 13.
    for axis in tl.static_range(3):
        mean = tl.load(means + index * means_row + axis * means_column, mask=inside, other=0.0)
        tl.store(row + axis, mean, mask=inside)
        color = tl.load(colors + index * colors_row + axis * colors_column, mask=inside, other=0.0)
        tl.store(row + 3 + axis, _harmonic(color), mask=inside)
        scale = tl.load(scales + index * scales_row + axis * scales_column, mask=inside, other=1.0)
        # Not tl.maximum, which would hide NaN.
        scale = tl.where(scale < _SMALLEST_NORMAL, _SMALLEST_NORMAL, scale)
        tl.store(row + 7 + axis, tl.log(tl.where(scale > _LARGEST_LENGTH, _LARGEST_LENGTH, scale)), mask=inside)
    opacity = tl.load(opacities + index * opacities_row, mask=inside, other=0.5)
    opacity = tl.where(opacity < _SMALLEST_NORMAL, _SMALLEST_NORMAL, opacity)
    opacity = tl.where(opacity > _LARGEST_BELOW_1, _LARGEST_BELOW_1, opacity)
    tl.store(row + 6, tl.log(opacity / (1.0 - opacity)), mask=inside)
    for component in tl.static_range(4):
        value = tl.load(quaternions + index * quaternions_row + component * quaternions_column, mask=inside, other=0.0)
        tl.store(row + 10 + component, value, mask=inside)

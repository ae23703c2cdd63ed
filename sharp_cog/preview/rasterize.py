"""A Gaussian rasterizer for machines without a GPU, compiled by numba; exact rather than fast.

Gaussians are projected by EWA splatting (Zwicker et al., "EWA Volume Splatting", 2001), widened by the low-pass of
3D Gaussian Splatting (Kerbl et al., 2023) with the opacity lowered accordingly (Yu et al., "Mip-Splatting", 2024), and
blended front to back in tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.preview.colors import seen_colors
from sharp_cog.preview.view import View

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

TILE = 16
"""Side of a tile in pixels."""
NEAR_M = 1e-3
"""Depth in metres up to which Gaussians are not rendered."""
LOW_PASS_PX2 = 0.3
"""Variance, in square pixels, by which every Gaussian is widened."""
MIN_ALPHA = 1.0 / 255.0
"""Smallest alpha that is blended."""
MAX_ALPHA = 0.999
"""Largest alpha of one Gaussian."""
MIN_TRANSMITTANCE = 1e-4
"""Transmittance below which a pixel is complete."""
_FRUSTUM_MARGIN = 1.3
"""Limit of the point at which the projection is linearised, in half fields of view, as in the reference renderer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendering:
    """A rendered view.

    Attributes:
        rgb: (height, width, 3) float32, linear RGB blended over black.
        alpha: (height, width) float32, in [0, 1].
        depth_m: (height, width) float32, mean depth of the Gaussians, weighted as their colours; 0 where none is seen.
    """

    rgb: Floats
    alpha: Floats
    depth_m: Floats


def rasterize(gaussians: Gaussians, view: View) -> Rendering:
    """Render a splat on the CPU.

    Args:
        gaussians: N Gaussians on any device, OpenCV axes.
        view: Pose and intrinsics of the camera.
    """
    with _keep_torch_threads():
        return _rasterize(gaussians, view)


@contextmanager
def _keep_torch_threads() -> Iterator[None]:
    """Restore torch's number of threads, which numba's OpenMP layer overwrites in the calling thread.

    Torch's results depend on that number: an image resized by one thread differs in its last bits from one resized by
    two.
    """
    num_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _rasterize(gaussians: Gaussians, view: View) -> Rendering:
    def array(tensor: torch.Tensor) -> Floats:
        return np.ascontiguousarray(tensor.detach().cpu().numpy(), dtype=np.float32)

    camera = view.world_to_camera.astype(np.float32)
    projected, depth = _project(
        array(gaussians.means),
        array(gaussians.scales),
        array(gaussians.quaternions_wxyz),
        array(gaussians.opacities),
        camera,
        np.float32(view.focal_length_px),
        view.width,
        view.height,
    )
    visible = np.flatnonzero(projected[:, 5] > 0)
    # One order for all tiles. The sort is stable, so that equal depths give the same image each time.
    order = visible[np.argsort(depth[visible], kind="stable")].astype(np.int32)
    starts, members = _assign_to_tiles(projected, order, view.width, view.height)
    rgb, alpha, weighted_depth = _blend(
        projected, depth, array(seen_colors(gaussians, view)), starts, members, view.width, view.height
    )
    # The weights add up to alpha.
    depth_m = np.divide(weighted_depth, np.maximum(alpha, 1e-6), dtype=np.float32)
    return Rendering(rgb=rgb, alpha=alpha, depth_m=depth_m)


# No fastmath: it may reorder sums, and assumes that no value is NaN, while the negated comparisons filter out NaN.
# The compiled code is cached on the disk, since compiling takes seconds.
@numba.njit(parallel=True, cache=True, fastmath=False)
def _project(
    means: Floats,
    scales: Floats,
    quaternions: Floats,
    opacities: Floats,
    camera: Floats,
    focal: np.float32,
    width: int,
    height: int,
) -> tuple[Floats, Floats]:
    """Project Gaussians to the image.

    Returns:
        Rows (N, 8) of x, y, the inverse covariance a b c (exponent = a dx dx + 2 b dx dy + c dy dy), opacity (0 for
        Gaussians that are not visible), and half extents in x and y; and depths (N,).
    """
    num = means.shape[0]
    projected = np.zeros((num, 8), np.float32)
    depth = np.zeros(num, np.float32)
    limit_x = _FRUSTUM_MARGIN * 0.5 * width / focal
    limit_y = _FRUSTUM_MARGIN * 0.5 * height / focal
    for i in numba.prange(num):
        mx, my, mz = means[i, 0], means[i, 1], means[i, 2]
        x = camera[0, 0] * mx + camera[0, 1] * my + camera[0, 2] * mz + camera[0, 3]
        y = camera[1, 0] * mx + camera[1, 1] * my + camera[1, 2] * mz + camera[1, 3]
        z = camera[2, 0] * mx + camera[2, 1] * my + camera[2, 2] * mz + camera[2, 3]
        if not z > NEAR_M or not opacities[i] > MIN_ALPHA:
            continue
        depth[i] = z
        # Jacobian of the projection. Far outside the frustum its linearisation would make Gaussians huge.
        px = x / z
        py = y / z
        tx = min(limit_x, max(-limit_x, px))
        ty = min(limit_y, max(-limit_y, py))
        jz = focal / z
        w, qx, qy, qz = quaternions[i, 0], quaternions[i, 1], quaternions[i, 2], quaternions[i, 3]
        # Two rows of J W R S; their products are the covariance in the image.
        xx = np.float32(0.0)
        xy = np.float32(0.0)
        yy = np.float32(0.0)
        for axis in range(3):
            # One column of R (rx, ry, rz), of W R (cx, cy, cz), and of J W R S (u, v).
            # The rows of J are (jz, 0, -jz tx) and (0, jz, -jz ty).
            if axis == 0:
                rx, ry, rz = 1 - 2 * (qy * qy + qz * qz), 2 * (qx * qy + w * qz), 2 * (qx * qz - w * qy)
            elif axis == 1:
                rx, ry, rz = 2 * (qx * qy - w * qz), 1 - 2 * (qx * qx + qz * qz), 2 * (qy * qz + w * qx)
            else:
                rx, ry, rz = 2 * (qx * qz + w * qy), 2 * (qy * qz - w * qx), 1 - 2 * (qx * qx + qy * qy)
            cx = camera[0, 0] * rx + camera[0, 1] * ry + camera[0, 2] * rz
            cy = camera[1, 0] * rx + camera[1, 1] * ry + camera[1, 2] * rz
            cz = camera[2, 0] * rx + camera[2, 1] * ry + camera[2, 2] * rz
            u = jz * scales[i, axis] * (cx - tx * cz)
            v = jz * scales[i, axis] * (cy - ty * cz)
            xx += u * u
            xy += u * v
            yy += v * v
        # The low-pass widens the Gaussian, so its opacity is lowered by the ratio of the areas.
        # Rounding may make the determinant of a thin Gaussian negative.
        before = max(np.float32(0.0), xx * yy - xy * xy)
        xx += np.float32(LOW_PASS_PX2)
        yy += np.float32(LOW_PASS_PX2)
        after = xx * yy - xy * xy
        opacity = opacities[i] * np.sqrt(before / after)
        if not opacity > MIN_ALPHA:
            continue
        # Beyond this squared Mahalanobis distance, the alpha is below MIN_ALPHA.
        radius2 = 2 * np.log(opacity / np.float32(MIN_ALPHA))
        # Half sides of the smallest upright box around the ellipse at that distance.
        half_x = np.sqrt(radius2 * xx)
        half_y = np.sqrt(radius2 * yy)
        # From here on, u and v are the centre in pixels.
        u = focal * px + np.float32(0.5) * width
        v = focal * py + np.float32(0.5) * height
        if u + half_x <= 0 or u - half_x >= width or v + half_y <= 0 or v - half_y >= height:
            continue
        projected[i, 0] = u
        projected[i, 1] = v
        projected[i, 2] = yy / after
        projected[i, 3] = -xy / after
        projected[i, 4] = xx / after
        projected[i, 5] = opacity
        projected[i, 6] = half_x
        projected[i, 7] = half_y
    return projected, depth


@numba.njit(cache=True, inline="always")
def _tile_range(centre: np.float32, half: np.float32, num_tiles: int) -> tuple[int, int]:
    first = max(0, int(np.floor((centre - half) / TILE)))
    last = min(num_tiles - 1, int(np.floor((centre + half) / TILE)))
    return first, last


@numba.njit(cache=True)
def _assign_to_tiles(projected: Floats, order: Ints, width: int, height: int) -> tuple[NDArray[np.int64], Ints]:
    """List the Gaussians that touch each tile, nearest first: a counting sort, which keeps the order of `order`.

    Returns:
        Starts (num_tiles + 1,) of each tile's part of the members; and the members, indices of Gaussians.
    """
    columns = (width + TILE - 1) // TILE
    rows = (height + TILE - 1) // TILE
    # Counts stand one place further on, so that their running sum is the start of each tile.
    starts = np.zeros(rows * columns + 1, np.int64)
    for k in range(order.size):
        i = order[k]
        left, right = _tile_range(projected[i, 0], projected[i, 6], columns)
        top, bottom = _tile_range(projected[i, 1], projected[i, 7], rows)
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                starts[row * columns + column + 1] += 1
    for tile in range(rows * columns):
        starts[tile + 1] += starts[tile]
    members = np.empty(starts[-1], np.int32)
    free = starts[:-1].copy()
    for k in range(order.size):
        i = order[k]
        left, right = _tile_range(projected[i, 0], projected[i, 6], columns)
        top, bottom = _tile_range(projected[i, 1], projected[i, 7], rows)
        for row in range(top, bottom + 1):
            for column in range(left, right + 1):
                tile = row * columns + column
                members[free[tile]] = i
                free[tile] += 1
    return starts, members


@numba.njit(parallel=True, cache=True, fastmath=False)
def _blend(
    projected: Floats,
    depth: Floats,
    colors: Floats,
    starts: NDArray[np.int64],
    members: Ints,
    width: int,
    height: int,
) -> tuple[Floats, Floats, Floats]:
    """Blend each tile front to back; return colour, alpha, and depth weighted by alpha."""
    columns = (width + TILE - 1) // TILE
    num_tiles = starts.size - 1
    rgb = np.zeros((height, width, 3), np.float32)
    alpha_out = np.zeros((height, width), np.float32)
    depth_out = np.zeros((height, width), np.float32)
    # Tiles have no pixel in common: threads need no locks, and sums have a fixed order.
    for tile in numba.prange(num_tiles):
        top = (tile // columns) * TILE
        left = (tile % columns) * TILE
        bottom = min(top + TILE, height)
        right = min(left + TILE, width)
        transmittance = np.ones((TILE, TILE), np.float32)
        # Pixels that are not complete; a tile ends when there are none.
        num_open = (bottom - top) * (right - left)
        for k in range(starts[tile], starts[tile + 1]):
            if num_open == 0:
                break
            i = members[k]
            u, v = projected[i, 0], projected[i, 1]
            a, b, c = projected[i, 2], projected[i, 3], projected[i, 4]
            opacity = projected[i, 5]
            red, green, blue, z = colors[i, 0], colors[i, 1], colors[i, 2], depth[i]
            # Pixels whose centres, at + 0.5, are in the box of the Gaussian.
            first_row = max(top, int(np.ceil(v - projected[i, 7] - 0.5)))
            last_row = min(bottom - 1, int(np.floor(v + projected[i, 7] - 0.5)))
            first_column = max(left, int(np.ceil(u - projected[i, 6] - 0.5)))
            last_column = min(right - 1, int(np.floor(u + projected[i, 6] - 0.5)))
            for row in range(first_row, last_row + 1):
                dy = np.float32(row + 0.5) - v
                for column in range(first_column, last_column + 1):
                    through = transmittance[row - top, column - left]
                    if through < MIN_TRANSMITTANCE:
                        continue
                    dx = np.float32(column + 0.5) - u
                    exponent = np.float32(-0.5) * (a * dx * dx + c * dy * dy) - b * dx * dy
                    alpha = min(np.float32(MAX_ALPHA), opacity * np.exp(exponent))
                    if alpha < np.float32(MIN_ALPHA):
                        continue
                    weight = alpha * through
                    rgb[row, column, 0] += weight * red
                    rgb[row, column, 1] += weight * green
                    rgb[row, column, 2] += weight * blue
                    depth_out[row, column] += weight * z
                    through *= np.float32(1.0) - alpha
                    transmittance[row - top, column - left] = through
                    if through < MIN_TRANSMITTANCE:
                        num_open -= 1
        for row in range(top, bottom):
            for column in range(left, right):
                alpha_out[row, column] = np.float32(1.0) - transmittance[row - top, column - left]
    return rgb, alpha_out, depth_out

"""The two .ply forms: vertices alone, which every viewer reads, and Apple's with its extra elements."""

from __future__ import annotations

import math
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharp_cog.formats.limits import MAX_LENGTH_M, MAX_OPACITY, MIN_OPACITY, MIN_SCALE_M, require_writable
from sharp_cog.formats.ply_file import comments
from sharp_cog.formats.scene import PHOTOGRAPH_FRAME, Frame
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.imaging.color import linear_to_srgb
from sharp_cog.runtime.kernels.choose import fused_for

PROPERTIES = (
    *("x", "y", "z"),
    *("f_dc_0", "f_dc_1", "f_dc_2"),
    "opacity",
    *("scale_0", "scale_1", "scale_2"),
    *("rot_0", "rot_1", "rot_2", "rot_3"),
)
"""The floats of a vertex, in order: what 3D Gaussian Splatting's own tools write."""

SH_C0 = math.sqrt(1.0 / (4.0 * math.pi))
"""The spherical harmonic of degree 0."""

MAX_DISPARITY_PER_M = 1e6
"""Where Apple's disparity quantiles stop, so that a Gaussian in the camera's centre does not make them infinite."""

_MAX_QUANTILES = 16_000_000
"""Values that `torch.quantile` takes."""

_CHUNK = 1 << 16
"""Gaussians at a time, so that a chunk's columns stay in cache on a CPU."""


def vertex_block(gaussians: Gaussians) -> NDArray[np.float32]:
    """Lays Gaussians out as the file holds them.

    Args:
        gaussians: N Gaussians on any device.

    Returns:
        (N, 14) float32, contiguous, in the order of `PROPERTIES`: position in metres, degree-0 spherical harmonics of
        the sRGB colour, logit of the opacity, natural logarithm of the scales in metres, unit quaternion w x y z.
        What is out of range becomes the nearest value that is not: colours in [0, 1], opacities from `MIN_OPACITY` to
        `MAX_OPACITY` and scales from `MIN_SCALE_M` to `MAX_LENGTH_M`, so that logits and logarithms are finite.

    Raises:
        PredictionError: As `sharp_cog.formats.limits.require_writable`.
    """
    require_writable(gaussians)
    fused = fused_for(gaussians.means.device)
    block = _vertex_rows(gaussians) if fused is None else fused.vertex_rows(*_fields(gaussians))
    return _to_host(block)


def _fields(gaussians: Gaussians) -> tuple[Tensor, ...]:
    """In the order of the rows."""
    return (
        gaussians.means,
        gaussians.colors_linear,
        gaussians.opacities,
        gaussians.scales,
        gaussians.quaternions_wxyz,
    )


def _vertex_rows(gaussians: Gaussians) -> Tensor:
    """The rows by torch's own operations: the plain twin of `sharp_cog.runtime.kernels.fused.vertex_rows`."""
    block = torch.empty(len(gaussians), len(PROPERTIES), device=gaussians.means.device)
    for start in range(0, len(gaussians), _CHUNK):
        part = slice(start, start + _CHUNK)
        rows = block[part]
        rows[:, 0:3] = gaussians.means[part]
        rows[:, 3:6] = linear_to_srgb(gaussians.colors_linear[part].clamp(0.0, 1.0)).sub_(0.5).div_(SH_C0)
        rows[:, 6] = gaussians.opacities[part].clamp(MIN_OPACITY, MAX_OPACITY).logit_()
        rows[:, 7:10] = gaussians.scales[part].clamp(MIN_SCALE_M, MAX_LENGTH_M).log_()
        rows[:, 10:14] = gaussians.quaternions_wxyz[part]
    return block


def _to_host(block: Tensor) -> NDArray[np.float32]:
    if block.device.type != "cuda":
        return block.cpu().numpy()
    # Into page-locked memory, which the device writes to at the full speed of the bus; torch keeps and reuses it.
    host = torch.empty(block.shape, dtype=block.dtype, pin_memory=True)
    host.copy_(block, non_blocking=True)
    torch.cuda.current_stream(block.device).synchronize()
    return host.numpy()


def write_ply(file: BinaryIO, gaussians: Gaussians, camera: Camera | None, frame: Frame = PHOTOGRAPH_FRAME) -> None:
    """Writes the vertices alone; what else is known goes into comments of the header."""
    file.write(_header(len(gaussians), header_comments=comments(camera, frame)))
    file.write(vertex_block(gaussians).data)


def write_apple_ply(file: BinaryIO, gaussians: Gaussians, camera: Camera, frame: Frame = PHOTOGRAPH_FRAME) -> None:
    """Writes what Apple's own tool writes, for its `render` command; its camera always stands at the origin."""
    del frame
    width, height, focal = camera.width, camera.height, camera.focal_length_px
    quantiles = _disparity_quantiles(gaussians)
    extras: tuple[tuple[str, str, NDArray[np.generic]], ...] = (
        ("extrinsic", "float", np.eye(4, dtype="<f4").ravel()),
        ("intrinsic", "float", np.array([focal, 0, width / 2, 0, focal, height / 2, 0, 0, 1], dtype="<f4")),
        ("image_size", "uint", np.array([width, height], dtype="<u4")),
        ("frame", "int", np.array([1, len(gaussians)], dtype="<i4")),
        ("disparity", "float", np.array(quantiles, dtype="<f4")),
        ("color_space", "uchar", np.array([0], dtype="u1")),
        ("version", "uchar", np.array([1, 5, 0], dtype="u1")),
    )
    elements = tuple((name, type_, len(values)) for name, type_, values in extras)
    file.write(_header(len(gaussians), elements=elements))
    file.write(vertex_block(gaussians).data)
    for _, _, values in extras:
        file.write(values.tobytes())


def _header(
    num_vertices: int, *, header_comments: tuple[str, ...] = (), elements: tuple[tuple[str, str, int], ...] = ()
) -> bytes:
    lines = ["ply", "format binary_little_endian 1.0"]
    lines += [f"comment {comment}" for comment in header_comments]
    lines += [f"element vertex {num_vertices}"]
    lines += [f"property float {name}" for name in PROPERTIES]
    for name, type_, count in elements:
        lines += [f"element {name} {count}", f"property {type_} {name}"]
    return "\n".join([*lines, "end_header", ""]).encode("ascii")


def _disparity_quantiles(gaussians: Gaussians) -> tuple[float, float]:
    """The 10 % and 90 % quantiles of 1 / z in 1 / m, linearly interpolated; zeros for no Gaussians."""
    if not len(gaussians):
        return 0.0, 0.0
    disparity = gaussians.means[:, 2].reciprocal().clamp(-MAX_DISPARITY_PER_M, MAX_DISPARITY_PER_M)
    if disparity.device.type == "cpu" or len(disparity) > _MAX_QUANTILES:
        low, high = np.quantile(disparity.cpu().numpy(), (0.1, 0.9))
    else:
        low, high = disparity.quantile(disparity.new_tensor((0.1, 0.9))).tolist()
    return float(low), float(high)

"""Both .ply forms of 3D Gaussians: vertices alone, which every viewer reads, and Apple's with extra elements."""

from __future__ import annotations

import math
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharp_cog.errors import SplatError
from sharp_cog.formats.limits import MAX_LENGTH_M, MAX_OPACITY, MIN_OPACITY, MIN_SCALE_M, require_writable
from sharp_cog.formats.ply_file import (
    Element,
    metadata_comments,
    read_camera,
    read_elements,
    read_frame,
    read_header,
    write_header,
)
from sharp_cog.formats.quaternions import to_unit
from sharp_cog.formats.scene import PHOTOGRAPH_FRAME, Frame, Splat
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.imaging.color import linear_to_srgb, srgb_to_linear
from sharp_cog.runtime.kernels.choose import fused_for

PROPERTIES = (
    *("x", "y", "z"),
    *("f_dc_0", "f_dc_1", "f_dc_2"),
    "opacity",
    *("scale_0", "scale_1", "scale_2"),
    *("rot_0", "rot_1", "rot_2", "rot_3"),
)
"""The floats of a vertex, in the order of the original 3D Gaussian Splatting code."""

SH_C0 = math.sqrt(1.0 / (4.0 * math.pi))
"""The spherical harmonic of degree 0."""

MAX_DISPARITY_PER_M = 1e6
"""Limit of Apple's disparity quantiles: a Gaussian in the camera's centre would make them infinite."""

_MAX_QUANTILES = 16_000_000
"""Maximum number of values that `torch.quantile` accepts."""

_CHUNK = 1 << 16
"""Number of Gaussians converted at a time, so that their columns stay in a CPU's cache."""


def vertex_block(gaussians: Gaussians) -> NDArray[np.float32]:
    """Convert Gaussians to the rows of a .ply, from which all other formats are made too.

    Args:
        gaussians: N Gaussians on any device.

    Returns:
        (N, 14) float32, contiguous, in the order of `PROPERTIES`: position in metres, degree-0 spherical harmonics of
        the sRGB colour, logit of the opacity, natural logarithm of the scales in metres, unit quaternion w x y z.
        Opacities and scales out of range become the nearest value in range, from `MIN_OPACITY` to `MAX_OPACITY` and
        from `MIN_SCALE_M` to `MAX_LENGTH_M`, so that logits and logarithms are finite.

    Raises:
        PredictionError: The Gaussians cannot be written; see `sharp_cog.formats.limits.require_writable`.
    """
    require_writable(gaussians)
    fused = fused_for(gaussians.means.device)
    block = _vertex_rows(gaussians) if fused is None else fused.vertex_rows(*_fields(gaussians))
    return _to_host(block)


def _fields(gaussians: Gaussians) -> tuple[Tensor, ...]:
    """Return the fields in the order of a row."""
    return (
        gaussians.means,
        gaussians.colors_linear,
        gaussians.opacities,
        gaussians.scales,
        gaussians.quaternions_wxyz,
    )


def _vertex_rows(gaussians: Gaussians) -> Tensor:
    """Return the rows, computed by torch: the plain twin of `sharp_cog.runtime.kernels.fused.vertex_rows`."""
    block = torch.empty(len(gaussians), len(PROPERTIES), device=gaussians.means.device)
    for start in range(0, len(gaussians), _CHUNK):
        part = slice(start, start + _CHUNK)
        rows = block[part]
        rows[:, 0:3] = gaussians.means[part]
        # Viewers show 0.5 + SH_C0 * f_dc as it is, without a transfer function, so it must be sRGB.
        rows[:, 3:6] = linear_to_srgb(gaussians.colors_linear[part]).sub_(0.5).div_(SH_C0)
        rows[:, 6] = gaussians.opacities[part].clamp(MIN_OPACITY, MAX_OPACITY).logit_()
        rows[:, 7:10] = gaussians.scales[part].clamp(MIN_SCALE_M, MAX_LENGTH_M).log_()
        rows[:, 10:14] = gaussians.quaternions_wxyz[part]
    return block


def _to_host(block: Tensor) -> NDArray[np.float32]:
    if block.device.type != "cuda":
        return block.cpu().numpy()
    # A copy to page-locked memory runs at the full speed of the bus; torch keeps that memory and reuses it.
    host = torch.empty(block.shape, dtype=block.dtype, pin_memory=True)
    host.copy_(block, non_blocking=True)
    torch.cuda.current_stream(block.device).synchronize()
    return host.numpy()


def write_ply(file: BinaryIO, gaussians: Gaussians, camera: Camera | None, frame: Frame = PHOTOGRAPH_FRAME) -> None:
    """Write the vertices alone; comments in the header store the camera and the frame."""
    file.write(write_header([_vertices(len(gaussians))], metadata_comments(camera, frame)))
    file.write(vertex_block(gaussians).data)


def write_apple_ply(file: BinaryIO, gaussians: Gaussians, camera: Camera, frame: Frame = PHOTOGRAPH_FRAME) -> None:
    """Write the layout of Apple's own tool, for its `render` command; its camera always stands at the origin."""
    del frame
    width, height, focal = camera.width, camera.height, camera.focal_length_px
    # Apple's tool stores an array as an element that is named like its only property, with a row for each value.
    extras: dict[str, NDArray[np.generic]] = {
        "extrinsic": np.eye(4, dtype="<f4").ravel(),
        "intrinsic": np.array([focal, 0, width / 2, 0, focal, height / 2, 0, 0, 1], dtype="<f4"),
        "image_size": np.array([width, height], dtype="<u4"),
        # One frame, and its number of Gaussians.
        "frame": np.array([1, len(gaussians)], dtype="<i4"),
        "disparity": np.array(_disparity_quantiles(gaussians), dtype="<f4"),
        # 0 stands for sRGB, 1 for linear colours.
        "color_space": np.array([0], dtype="u1"),
        "version": np.array([1, 5, 0], dtype="u1"),
    }
    elements = [
        Element(name=name, count=len(values), properties=[(name, values.dtype.str[1:])])
        for name, values in extras.items()
    ]
    file.write(write_header([_vertices(len(gaussians)), *elements]))
    file.write(vertex_block(gaussians).data)
    for values in extras.values():
        file.write(values.tobytes())


def _vertices(count: int) -> Element:
    return Element(name="vertex", count=count, properties=[(name, "f4") for name in PROPERTIES])


def _disparity_quantiles(gaussians: Gaussians) -> tuple[float, float]:
    """Return the 10 % and 90 % quantiles of 1 / z in 1 / m, linearly interpolated; zeros without Gaussians."""
    if not len(gaussians):
        return 0.0, 0.0
    disparity = gaussians.means[:, 2].reciprocal().clamp(-MAX_DISPARITY_PER_M, MAX_DISPARITY_PER_M)
    # On a CPU, torch.quantile sorts all values, while numpy only partitions them.
    if disparity.device.type == "cpu" or len(disparity) > _MAX_QUANTILES:
        low, high = np.quantile(disparity.cpu().numpy(), (0.1, 0.9))
    else:
        low, high = disparity.quantile(disparity.new_tensor((0.1, 0.9))).tolist()
    return float(low), float(high)


def read_ply(content: bytes) -> Splat:
    """Read a .ply of 3D Gaussians: ours, Apple's, or another tool's with the same properties.

    Other properties, such as higher spherical harmonics, are ignored.

    Args:
        content: The whole file: binary of either byte order, or ASCII.

    Raises:
        SplatError: The content is not a .ply, is broken or truncated, or lacks a property of Gaussians.
    """
    header = read_header(content)
    elements = read_elements(content, header)
    if "vertex" not in elements:
        raise SplatError("the .ply has no element 'vertex': it is not a splat")
    return Splat(
        gaussians=_gaussians(elements["vertex"], is_linear=_is_linear(elements)),
        camera=read_camera(header.comments, elements),
        # Apple's files have no comments, and always the photograph's frame.
        frame=read_frame(header.comments) or (PHOTOGRAPH_FRAME if "intrinsic" in elements else None),
    )


def _is_linear(elements: dict[str, NDArray[np.void]]) -> bool:
    """Return whether Apple's element says that colours are linear (1); without it they are sRGB, as in viewers."""
    element = elements.get("color_space")
    if element is None or "color_space" not in (element.dtype.names or ()) or not len(element):
        return False
    return bool(element["color_space"][0] == 1)


def _gaussians(vertices: NDArray[np.void], *, is_linear: bool) -> Gaussians:
    missing = [name for name in PROPERTIES if name not in (vertices.dtype.names or ())]
    if missing:
        raise SplatError(f"the .ply has no {', '.join(missing)}: it holds points or a mesh, not Gaussians")

    def columns(*names: str) -> Tensor:
        with np.errstate(over="ignore"):  # A double beyond float32 becomes infinite, and `Splat` refuses it.
            return torch.from_numpy(np.stack([vertices[name].astype(np.float32) for name in names], axis=-1))

    quaternions = columns("rot_0", "rot_1", "rot_2", "rot_3")
    # Other tools write quaternions of any length: divided by the largest component, no square over- or underflows.
    largest = quaternions.abs().amax(dim=-1, keepdim=True)
    quaternions = torch.where(largest > 0, quaternions / largest, quaternions)
    colors = columns("f_dc_0", "f_dc_1", "f_dc_2") * SH_C0 + 0.5
    return Gaussians(
        means=columns("x", "y", "z"),
        # Logarithms above 88 become infinite scales, and `Splat` refuses those.
        scales=columns("scale_0", "scale_1", "scale_2").exp_(),
        quaternions_wxyz=to_unit(quaternions),
        colors_linear=colors if is_linear else srgb_to_linear(colors),
        opacities=columns("opacity")[:, 0].sigmoid(),
    )

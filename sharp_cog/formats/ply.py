"""Both .ply forms of 3D Gaussians: vertices alone, which nearly every viewer reads, and Apple's with extra elements."""

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
from sharp_cog.geometry.gaussians import NUM_BANDS, Gaussians
from sharp_cog.imaging.color import linear_to_srgb, srgb_to_linear
from sharp_cog.runtime.kernels.choose import fused_for
from sharp_cog.text import plain

PROPERTIES = (
    *("x", "y", "z"),
    *("f_dc_0", "f_dc_1", "f_dc_2"),
    "opacity",
    *("scale_0", "scale_1", "scale_2"),
    *("rot_0", "rot_1", "rot_2", "rot_3"),
)
"""The floats of a vertex, in the order of the original 3D Gaussian Splatting code."""

_NORMALS = ("nx", "ny", "nz")
_POINT_COLORS = ("red", "green", "blue")
_REST_COUNTS = ", ".join(str(3 * num_bands) for num_bands in NUM_BANDS[1:-1]) + f" or {3 * NUM_BANDS[-1]}"

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


def write_ply(
    file: BinaryIO,
    gaussians: Gaussians,
    camera: Camera | None,
    frame: Frame = PHOTOGRAPH_FRAME,
    *,
    has_normals: bool = False,
    has_point_colors: bool = False,
) -> None:
    """Write the vertices alone; comments in the header store the camera and the frame.

    Args:
        file: Binary file to write to.
        gaussians: N Gaussians on any device; their harmonics are written too.
        camera: Camera of the photograph, if it is known.
        frame: Frame of the Gaussians' coordinates.
        has_normals: Whether to write the normals `nx ny nz`, which are zeros, as the original code does.
        has_point_colors: Whether to write `red green blue` too, the colours in 8 bits of sRGB, for programs that show
            points.

    Raises:
        PredictionError: A value is not finite.
    """
    block = vertex_block(gaussians)
    names = [*PROPERTIES[:3], *(_NORMALS if has_normals else ()), *PROPERTIES[3:6], *rest_names(gaussians.degree)]
    names += PROPERTIES[6:]
    properties = [(name, "f4") for name in names] + [(name, "u1") for name in _POINT_COLORS if has_point_colors]
    vertices = Element(name="vertex", count=len(gaussians), properties=properties)
    file.write(write_header([vertices], metadata_comments(camera, frame)))
    if names == list(PROPERTIES) and not has_point_colors:
        file.write(block.data)
        return
    harmonics = rest_columns(gaussians)
    for start in range(0, len(block), _CHUNK):
        rows = block[start : start + _CHUNK]
        normals = np.zeros((len(rows), len(_NORMALS) if has_normals else 0), np.float32)
        columns = [rows[:, :3], normals, rows[:, 3:6], harmonics[start : start + _CHUNK], rows[:, 6:]]
        # As bytes, since the colours are no floats.
        content = np.concatenate(columns, axis=1).astype("<f4", copy=False).view(np.uint8)
        if has_point_colors:
            srgb = (rows[:, 3:6] * SH_C0 + 0.5).clip(0.0, 1.0)
            content = np.concatenate([content, np.rint(srgb * 255.0).astype(np.uint8)], axis=1)
        file.write(content.data)


def rest_names(degree: int) -> list[str]:
    """Return the names of the properties of the spherical harmonics above degree 0."""
    return [f"f_rest_{index}" for index in range(3 * NUM_BANDS[degree])]


def rest_columns(gaussians: Gaussians) -> NDArray[np.float32]:
    """Return the columns (N, 3 K) of `rest_names`: all harmonics of red, then of green, then of blue."""
    if gaussians.harmonics is None:
        return np.empty((len(gaussians), 0), np.float32)
    return gaussians.harmonics.transpose(1, 2).reshape(len(gaussians), -1).cpu().numpy()


def harmonics_of_rest(columns: Tensor) -> Tensor | None:
    """Reverse `rest_columns`; None if there are no columns."""
    return columns.reshape(len(columns), 3, -1).transpose(1, 2).contiguous() if columns.shape[1] else None


def write_apple_ply(file: BinaryIO, gaussians: Gaussians, camera: Camera, frame: Frame = PHOTOGRAPH_FRAME) -> None:
    """Write the layout of Apple's own tool, for its `render` command; its camera always stands at the origin.

    That tool reads colours of degree 0 alone.
    """
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
    vertices = Element(name="vertex", count=len(gaussians), properties=[(name, "f4") for name in PROPERTIES])
    file.write(write_header([vertices, *elements]))
    file.write(vertex_block(gaussians).data)
    for values in extras.values():
        file.write(values.tobytes())


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


def is_apple_ply(content: bytes) -> bool:
    """Return whether a file's content starts with the header of a .ply with Apple's extra elements."""
    return content.startswith(b"ply") and b"element intrinsic " in content[: content.find(b"end_header")]


def read_ply(content: bytes) -> Splat:
    """Read a .ply of 3D Gaussians: ours, Apple's, or another tool's with the same properties.

    Spherical harmonics are read too; other properties are ignored. Without `f_dc`, colours are those of
    `red green blue`.

    Args:
        content: The whole file: binary of either byte order, or ASCII.

    Raises:
        SplatError: The content is not a .ply, is broken or truncated, or holds something other than Gaussians.
    """
    header = read_header(content)
    elements = read_elements(content, header)
    counts = {element.name: element.count for element in header.elements}
    if "vertex" not in elements:
        found = ", ".join(plain(name) for name in counts) or "none"
        raise SplatError(f"the .ply has no element 'vertex' that can be read (but {found}): it is not a splat")
    gaussians, notes = _gaussians(elements["vertex"], is_linear=_is_linear(elements), num_faces=counts.get("face", 0))
    return Splat(
        gaussians=gaussians,
        camera=read_camera(header.comments, elements),
        # Apple's files have no comments, and always the photograph's frame.
        frame=read_frame(header.comments) or (PHOTOGRAPH_FRAME if "intrinsic" in elements else None),
        notes=notes,
    )


def _is_linear(elements: dict[str, NDArray[np.void]]) -> bool:
    """Return whether Apple's element says that colours are linear (1); without it they are sRGB, as in viewers."""
    element = elements.get("color_space")
    if element is None or "color_space" not in (element.dtype.names or ()) or not len(element):
        return False
    return bool(element["color_space"][0] == 1)


def _gaussians(vertices: NDArray[np.void], *, is_linear: bool, num_faces: int) -> tuple[Gaussians, tuple[str, ...]]:
    """Return the Gaussians of the vertices, and notes on what was assumed or left out."""
    names = set(vertices.dtype.names or ())
    notes = []
    missing = [name for name in PROPERTIES if name not in names]
    is_colored_by_points = missing == list(PROPERTIES[3:6]) and names.issuperset(_POINT_COLORS)
    if missing and not is_colored_by_points:
        raise SplatError(_what_it_is(names, missing, len(vertices), num_faces))

    def columns(*names: str) -> Tensor:
        if not names:
            return torch.empty(len(vertices), 0)
        with np.errstate(over="ignore"):  # A double beyond float32 becomes infinite, and `formats.read` refuses it.
            return torch.from_numpy(np.stack([vertices[name].astype(np.float32) for name in names], axis=-1))

    if is_colored_by_points:
        notes.append("the file has no f_dc_0, f_dc_1, f_dc_2: colours are those of red, green and blue")
        # Integers have 255 steps, and floats are shares.
        is_integer = vertices.dtype["red"].kind in "iu"
        colors = columns(*_POINT_COLORS) / (255.0 if is_integer else 1.0)
    else:
        colors = columns("f_dc_0", "f_dc_1", "f_dc_2") * SH_C0 + 0.5
    num_rest = sum(name.startswith("f_rest_") for name in names)
    rest = [f"f_rest_{index}" for index in range(num_rest)]
    if num_rest % 3 or num_rest // 3 not in NUM_BANDS or not names.issuperset(rest):
        notes.append(f"the file has {num_rest} properties f_rest_*, not {_REST_COUNTS}: they are left out")
        rest = []
    quaternions = columns("rot_0", "rot_1", "rot_2", "rot_3")
    # Other tools write quaternions of any length: divided by the largest component, no square over- or underflows.
    largest = quaternions.abs().amax(dim=-1, keepdim=True)
    quaternions = torch.where(largest > 0, quaternions / largest, quaternions)
    gaussians = Gaussians(
        means=columns("x", "y", "z"),
        # Logarithms above 88 become infinite scales, and `formats.read` refuses those.
        scales=columns("scale_0", "scale_1", "scale_2").exp_(),
        quaternions_wxyz=to_unit(quaternions),
        colors_linear=colors if is_linear else srgb_to_linear(colors),
        opacities=columns("opacity")[:, 0].sigmoid(),
        harmonics=harmonics_of_rest(columns(*rest)),
    )
    return gaussians, tuple(notes)


def _what_it_is(names: set[str], missing: list[str], num_vertices: int, num_faces: int) -> str:
    """Return the message that refuses vertices which are not Gaussians."""
    if num_faces:
        return f"the .ply is a mesh of {num_vertices} vertices and {num_faces} faces: use a .ply of Gaussians"
    if names.isdisjoint(PROPERTIES[3:]):
        return f"the .ply is a point cloud of {num_vertices} points: use a .ply of Gaussians"
    if missing == ["scale_2"]:
        return "the .ply has no scale_2: it holds 2D Gaussians, which are discs: use a .ply of 3D Gaussians"
    return f"the .ply has no {', '.join(missing)}: it holds points or a mesh, not Gaussians"

"""PlayCanvas' compressed .ply: 16 bytes for each Gaussian, and 72 for each chunk of 256.

The layout is that of the PlayCanvas engine and SuperSplat, as described in "Compressing Gaussian Splats"
(https://blog.playcanvas.com/compressing-gaussian-splats/): an element `chunk` with the minimum and maximum position,
logarithm of the scale, and sRGB colour of each chunk, and an element `vertex` with four packed integers per Gaussian
that are fractions of these ranges. Only the last chunk may hold fewer than 256.
"""

from __future__ import annotations

import math
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharp_cog.errors import SplatError
from sharp_cog.formats.ply import SH_C0, harmonics_of_rest, rest_columns, rest_names, vertex_block
from sharp_cog.formats.ply_file import (
    Element,
    metadata_comments,
    read_camera,
    read_elements,
    read_frame,
    read_header,
    write_header,
)
from sharp_cog.formats.quaternions import drop_largest, restore_largest, to_unit
from sharp_cog.formats.scene import PHOTOGRAPH_FRAME, Frame, Splat
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import NUM_BANDS, Gaussians
from sharp_cog.imaging.color import srgb_to_linear

CHUNK_SIZE = 256
"""Number of Gaussians in a chunk."""

CHUNK_PROPERTIES = (
    *("min_x", "min_y", "min_z", "max_x", "max_y", "max_z"),
    *("min_scale_x", "min_scale_y", "min_scale_z", "max_scale_x", "max_scale_y", "max_scale_z"),
    *("min_r", "min_g", "min_b", "max_r", "max_g", "max_b"),
)
"""The floats of a chunk; files of the format's first version end before the colours."""
VERTEX_PROPERTIES = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
"""The unsigned integers of a Gaussian, 32 bits each."""

MAX_LOG_SCALE = 20.0
"""Limit of the logarithm of a scale in metres, in either direction.

A chunk's steps are fractions of its range, so one Gaussian without extent would cost the others their precision.
"""

MAX_COLOR = 8.0
"""Limit of an sRGB value in either direction, for the same reason; trained splats stay below it."""

HARMONICS_RANGE = 8.0
"""Range of the coefficients of spherical harmonics, from -4 to 4."""

# Bits of each component, from the highest down; a quaternion's leave two for the index of its largest component.
_VECTOR_BITS = (11, 10, 11)
_COLOR_BITS = (8, 8, 8, 8)
_QUATERNION_BITS = (10, 10, 10)

_TYPE_NAMES = {"f4": "float", "u4": "uint", "u1": "uchar"}

_MORTON_BITS = 21
"""Bits of a Morton code for each axis; three times as many fit in 63 bits."""
_SPREAD = (
    (32, 0x1F00000000FFFF),
    (16, 0x1F0000FF0000FF),
    (8, 0x100F00F00F00F00F),
    (4, 0x10C30C30C30C30C3),
    (2, 0x1249249249249249),
)
"""Shifts and masks that insert two zeros between neighbouring bits (Morton, 1966)."""

_TINY = torch.finfo(torch.float32).tiny
"""Smallest divisor: a range of zero must not be divided by."""
_PART = 1 << 15
"""Number of Gaussians packed at a time: whole chunks that fit in a CPU's cache."""


def write_compressed_ply(
    file: BinaryIO, gaussians: Gaussians, camera: Camera | None, frame: Frame = PHOTOGRAPH_FRAME
) -> None:
    """Write a splat in Morton order, so that the Gaussians of a chunk are neighbours; comments store the camera.

    Positions and logarithms of scales are exact to half of 1 / 2047 (y: 1 / 1023) of their chunk's range, colours
    to half of 1 / 255 of it, opacities to half of 1 / 255, components of quaternions to 0.0007, coefficients of
    spherical harmonics to 1 / 64 within -4 to 4. Scales are limited to the range from e^-20 m to e^20 m.

    Args:
        file: Binary file to write to.
        gaussians: N Gaussians on any device.
        camera: Camera of the photograph, if it is known.
        frame: Frame of the Gaussians' coordinates.

    Raises:
        PredictionError: A value is not finite.
    """
    block = torch.from_numpy(vertex_block(gaussians))
    num_gaussians, num_chunks = len(block), -(-len(block) // CHUNK_SIZE)
    order = _morton_order(block[:, 0:3])
    # The last chunk is padded with its last Gaussian to make all chunks equal; the padding is not written.
    order = torch.cat([order, order[-1:].expand(num_chunks * CHUNK_SIZE - num_gaussians)])
    chunks = torch.empty(num_chunks, len(CHUNK_PROPERTIES))
    vertices = torch.empty(len(order), len(VERTEX_PROPERTIES), dtype=torch.int32)
    rest = torch.from_numpy(rest_columns(gaussians))[order[:num_gaussians]]
    for start in range(0, len(order), _PART):
        part = slice(start, start + _PART)
        # (14, n): every property in one contiguous row, in the order of `sharp_cog.formats.ply.PROPERTIES`.
        columns = block[order[part]].t().contiguous()
        bounds = chunks[start // CHUNK_SIZE : (start + _PART) // CHUNK_SIZE]
        means, bounds[:, 0:6] = _within_chunks(columns[0:3])
        scales, bounds[:, 6:12] = _within_chunks(columns[7:10].clamp_(-MAX_LOG_SCALE, MAX_LOG_SCALE))
        colors, bounds[:, 12:18] = _within_chunks(columns[3:6].mul_(SH_C0).add_(0.5).clamp_(-MAX_COLOR, MAX_COLOR))
        vertices[part, 0] = _pack(means, _VECTOR_BITS)
        vertices[part, 1] = _pack_quaternions(columns[10:14])
        vertices[part, 2] = _pack(scales, _VECTOR_BITS)
        vertices[part, 3] = _pack(torch.cat([colors, columns[6:7].sigmoid()]), _COLOR_BITS)
    elements = [
        Element(name="chunk", count=num_chunks, properties=[(name, "f4") for name in CHUNK_PROPERTIES]),
        Element(name="vertex", count=num_gaussians, properties=[(name, "u4") for name in VERTEX_PROPERTIES]),
    ]
    if gaussians.degree:
        properties = [(name, "u1") for name in rest_names(gaussians.degree)]
        elements.append(Element(name="sh", count=num_gaussians, properties=properties))
    file.write(write_header(elements, metadata_comments(camera, frame)))
    file.write(chunks.numpy().astype("<f4", copy=False).data)
    # torch cannot shift uint32; the int32 have the same bits as the uint32 in the header.
    file.write(vertices[:num_gaussians].numpy().astype("<i4", copy=False).data)
    # Steps of 1 / 256 of the range, as PlayCanvas' own writer has them.
    file.write(
        rest.div_(HARMONICS_RANGE).add_(0.5).mul_(256.0).floor_().clamp_(0.0, 255.0).to(torch.uint8).numpy().data
    )


def _morton_order(means: Tensor) -> Tensor:
    """Return the indices (N,) that sort positions (N, 3) along a Morton curve through their bounding box."""
    if not len(means):
        return torch.empty(0, dtype=torch.int64)
    low, high = means.amin(dim=0), means.amax(dim=0)
    extent = (high - low).clamp_(min=_TINY)
    codes = torch.empty(len(means), dtype=torch.int64)
    for start in range(0, len(means), _PART):
        part = slice(start, start + _PART)
        unit = means[part].sub(low).div_(extent).clamp_(0.0, 1.0)
        bits = unit.mul_((1 << _MORTON_BITS) - 1).to(torch.int64)
        for shift, mask in _SPREAD:
            bits = (bits | bits << shift).bitwise_and_(mask)
        codes[part] = bits[:, 0] << 2 | bits[:, 1] << 1 | bits[:, 2]
    # Equal positions keep their order, so that the same splat always has the same bytes.
    return codes.argsort(stable=True)


def _within_chunks(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Express values as fractions of their chunk's range.

    Args:
        columns: (3, n) with n a multiple of `CHUNK_SIZE`.

    Returns:
        Fractions in [0, 1], (3, n), 0 where a chunk is constant; and bounds (n / CHUNK_SIZE, 6), the minima first.
    """
    chunked = columns.view(3, -1, CHUNK_SIZE)
    low, high = chunked.aminmax(dim=2, keepdim=True)
    unit = (chunked - low).div_((high - low).clamp_(min=_TINY)).clamp_(0.0, 1.0)
    return unit.view(3, -1), torch.cat([low, high]).squeeze(2).t()


def _pack(units: Tensor, bits: tuple[int, ...]) -> Tensor:
    """Pack values in [0, 1], (k, n), into the bits of int32 (n,), the first value into the highest bits."""
    packed = torch.zeros(units.shape[1], dtype=torch.int32)
    for unit, num_bits in zip(units, bits, strict=True):
        # Units are not negative, so truncation after adding 0.5 rounds to the nearest code.
        packed = (packed << num_bits).bitwise_or_((unit * ((1 << num_bits) - 1) + 0.5).to(torch.int32))
    return packed


def _pack_quaternions(quaternions_wxyz: Tensor) -> Tensor:
    """Pack unit quaternions (4, n) into int32 (n,): the index of the largest component, then the other three."""
    largest, others = drop_largest(quaternions_wxyz)
    units = others.mul_(math.sqrt(0.5)).add_(0.5).clamp_(0.0, 1.0)
    return _pack(units, _QUATERNION_BITS).bitwise_or_(largest.to(torch.int32) << 30)


def is_compressed_ply(content: bytes) -> bool:
    """Return whether a file's content starts with the header of a compressed .ply."""
    # Without `end_header`, `find` returns -1 and nearly the whole file is searched; `read_header` then refuses it.
    return content.startswith(b"ply") and b"packed_position" in content[: content.find(b"end_header")]


def read_compressed_ply(content: bytes) -> Splat:
    """Read a compressed .ply, with or without colours in its chunks and spherical harmonics.

    Args:
        content: The whole file.

    Returns:
        The Gaussians in the file's order, and the camera if sharp_cog wrote the file.

    Raises:
        SplatError: The content is not a compressed .ply, is broken or truncated.
    """
    header = read_header(content)
    elements = read_elements(content, header)
    chunks = _columns(elements, "chunk", CHUNK_PROPERTIES[:12], "f4")
    vertices = _columns(elements, "vertex", VERTEX_PROPERTIES, "u4")
    num_gaussians = len(vertices)
    if len(chunks) * CHUNK_SIZE < num_gaussians:
        raise SplatError(
            f"the .ply has {len(chunks)} chunks for {num_gaussians} Gaussians: there must be one for every {CHUNK_SIZE}"
        )
    # (N, 12): a row for each Gaussian. The last chunk may have fewer than 256.
    bounds = torch.from_numpy(chunks).repeat_interleave(CHUNK_SIZE, dim=0)[:num_gaussians]
    # int64, since a shift of int32 to the right would repeat its sign bit.
    packed = torch.from_numpy(vertices.astype(np.int64))
    colors = _unpack(packed[:, 3], _COLOR_BITS)
    rgb = colors[:, :3]
    # Where chunks have no colours, the bytes themselves are the colours.
    if set(CHUNK_PROPERTIES[12:]) <= set(elements["chunk"].dtype.names or ()):
        color_chunks = torch.from_numpy(_columns(elements, "chunk", CHUNK_PROPERTIES[12:], "f4"))
        rgb = _between(color_chunks.repeat_interleave(CHUNK_SIZE, dim=0)[:num_gaussians], rgb)
    others = _unpack(packed[:, 1], _QUATERNION_BITS).sub_(0.5).mul_(math.sqrt(2.0))
    gaussians = Gaussians(
        means=_between(bounds[:, 0:6], _unpack(packed[:, 0], _VECTOR_BITS)),
        scales=_between(bounds[:, 6:12], _unpack(packed[:, 2], _VECTOR_BITS)).exp_(),
        quaternions_wxyz=to_unit(restore_largest(packed[:, 1] >> 30, others)),
        colors_linear=srgb_to_linear(rgb),
        opacities=colors[:, 3].contiguous(),
        harmonics=_harmonics(elements, num_gaussians),
    )
    return Splat(gaussians=gaussians, camera=read_camera(header.comments, elements), frame=read_frame(header.comments))


def _harmonics(elements: dict[str, NDArray[np.void]], num_gaussians: int) -> Tensor | None:
    """Return the spherical harmonics (N, K, 3) of the element `sh`; None without it."""
    if "sh" not in elements:
        return None
    num_rest = len(elements["sh"].dtype.names or ())
    if num_rest % 3 or num_rest // 3 not in NUM_BANDS or len(elements["sh"]) != num_gaussians:
        raise SplatError(
            f"the .ply has {num_rest} spherical harmonics for {len(elements['sh'])} of {num_gaussians} Gaussians: it "
            "is broken"
        )
    codes = _columns(elements, "sh", tuple(rest_names(NUM_BANDS.index(num_rest // 3))), "u1")
    # The middle of a step, but for the first and the last one.
    units = torch.from_numpy(codes.astype(np.float32)).add_(0.5).div_(256.0)
    units[torch.from_numpy(codes == 0)] = 0.0
    units[torch.from_numpy(codes == 255)] = 1.0
    return harmonics_of_rest(units.sub_(0.5).mul_(HARMONICS_RANGE))


def _columns(
    elements: dict[str, NDArray[np.void]], name: str, properties: tuple[str, ...], type_: str
) -> NDArray[np.generic]:
    """Return properties of an element as one array (count, len(properties)) in this machine's byte order."""
    element = elements.get(name)
    fields = {} if element is None else dict(element.dtype.fields or {})
    # `str[1:]` is the type without the byte order, which the assignments below convert.
    wrong = [field for field in properties if field not in fields or fields[field][0].str[1:] != type_]
    if element is None or wrong:
        raise SplatError(
            f"the .ply is not a compressed one: its element {name!r} has no {', '.join(wrong)} of the type "
            f"{_TYPE_NAMES[type_]}"
        )
    columns: NDArray[np.generic] = np.empty((len(element), len(properties)), dtype=type_)
    for index, field in enumerate(properties):
        columns[:, index] = element[field]
    return columns


def _unpack(packed: Tensor, bits: tuple[int, ...]) -> Tensor:
    """Reverse `_pack`: return values in [0, 1], (n, k), from int64 (n,)."""
    units = torch.empty(len(packed), len(bits))
    shift = sum(bits)
    for index, num_bits in enumerate(bits):
        shift -= num_bits
        mask = (1 << num_bits) - 1
        units[:, index] = ((packed >> shift) & mask).to(torch.float32).div_(mask)
    return units


def _between(bounds: Tensor, units: Tensor) -> Tensor:
    """Return the values (n, 3) at the fractions `units` of the ranges `bounds` (n, 6), the minima first."""
    # Unlike low + (high - low) * unit, this is exact at both ends, and the difference cannot overflow.
    return bounds[:, :3] * (1.0 - units) + bounds[:, 3:] * units

"""PlayCanvas' compressed .ply: 16 bytes a Gaussian, and 72 for every chunk of 256.

The layout is that of the PlayCanvas engine and SuperSplat, as described in "Compressing Gaussian Splats"
(https://blog.playcanvas.com/compressing-gaussian-splats/): an element `chunk` with the least and the greatest position,
logarithm of the scale, and sRGB colour of each chunk, and an element `vertex` with four packed integers per Gaussian
that place it between them. Only the last chunk may hold fewer than 256.
"""

from __future__ import annotations

import math
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharp_cog.errors import SplatError
from sharp_cog.formats.ply import SH_C0, vertex_block
from sharp_cog.formats.ply_file import camera_of, comments, frame_of, parse_header, read_elements
from sharp_cog.formats.scene import PHOTOGRAPH_FRAME, Frame, Splat
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.quaternions import canonicalize
from sharp_cog.imaging.color import srgb_to_linear

CHUNK_SIZE = 256
"""Gaussians to a chunk."""

CHUNK_PROPERTIES = (
    *("min_x", "min_y", "min_z", "max_x", "max_y", "max_z"),
    *("min_scale_x", "min_scale_y", "min_scale_z", "max_scale_x", "max_scale_y", "max_scale_z"),
    *("min_r", "min_g", "min_b", "max_r", "max_g", "max_b"),
)
"""The floats of a chunk; files of the format's first version end before the colours."""
VERTEX_PROPERTIES = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
"""The unsigned integers of a Gaussian, 32 bits each."""

MAX_LOG_SCALE = 20.0
"""Logarithms of scales in metres are kept within plus and minus this, so that a Gaussian without extent does not take
the digits of the others in its chunk."""

_VECTOR_BITS = (11, 10, 11)
_COLOR_BITS = (8, 8, 8, 8)
_QUATERNION_BITS = (10, 10, 10)
_OTHER_COMPONENTS = ((1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2))
"""The components w x y z that are stored, by the index of the largest one, which is not."""

_MORTON_BITS = 21
"""Per axis: three times as many fit in 63 bits."""
_SPREAD = (
    (32, 0x1F00000000FFFF),
    (16, 0x1F0000FF0000FF),
    (8, 0x100F00F00F00F00F),
    (4, 0x10C30C30C30C30C3),
    (2, 0x1249249249249249),
)
"""Shifts and masks that leave two zeros between neighbouring bits (Morton, 1966; the masks follow from the shifts)."""

_TINY = torch.finfo(torch.float32).tiny
_PART = 1 << 15
"""Gaussians at a time, whole chunks: few enough for the caches."""


def write_compressed_ply(
    file: BinaryIO, gaussians: Gaussians, camera: Camera | None, frame: Frame = PHOTOGRAPH_FRAME
) -> None:
    """Writes the splat in Morton order, so that a chunk's Gaussians are neighbours; comments hold the camera.

    Positions and logarithms of scales are exact to half of 1 / 2047 (y: 1 / 1023) of what their chunk spans, colours
    to half of 1 / 255 of it, opacities to half of 1 / 255, components of quaternions to 0.0007. Scales below e^-20 m
    and above e^20 m become these.

    Args:
        file: Where to.
        gaussians: N Gaussians on any device.
        camera: The photograph's camera, if it is known.
        frame: Of the Gaussians' coordinates.

    Raises:
        PredictionError: A value is not finite.
    """
    block = torch.from_numpy(vertex_block(gaussians))
    num_gaussians, num_chunks = len(block), -(-len(block) // CHUNK_SIZE)
    order = _morton_order(block[:, 0:3])
    # The last chunk is filled with its last Gaussian for the sake of the arithmetic; what is added is not written.
    order = torch.cat([order, order[-1:].expand(num_chunks * CHUNK_SIZE - num_gaussians)])
    chunks = torch.empty(num_chunks, len(CHUNK_PROPERTIES))
    vertices = torch.empty(len(order), len(VERTEX_PROPERTIES), dtype=torch.int32)
    for start in range(0, len(order), _PART):
        part = slice(start, start + _PART)
        columns = block[order[part]].t().contiguous()
        bounds = chunks[start // CHUNK_SIZE : (start + _PART) // CHUNK_SIZE]
        means, bounds[:, 0:6] = _within_chunks(columns[0:3])
        scales, bounds[:, 6:12] = _within_chunks(columns[7:10].clamp_(-MAX_LOG_SCALE, MAX_LOG_SCALE))
        colors, bounds[:, 12:18] = _within_chunks(columns[3:6].mul_(SH_C0).add_(0.5))
        vertices[part, 0] = _pack(means, _VECTOR_BITS)
        vertices[part, 1] = _pack_quaternions(columns[10:14])
        vertices[part, 2] = _pack(scales, _VECTOR_BITS)
        vertices[part, 3] = _pack(torch.cat([colors, columns[6:7].sigmoid()]), _COLOR_BITS)
    file.write(_header(num_chunks, num_gaussians, comments(camera, frame)))
    file.write(chunks.numpy().astype("<f4", copy=False).data)
    file.write(vertices[:num_gaussians].numpy().astype("<i4", copy=False).data)


def _header(num_chunks: int, num_gaussians: int, header_comments: tuple[str, ...]) -> bytes:
    lines = [
        "ply",
        "format binary_little_endian 1.0",
        *(f"comment {comment}" for comment in header_comments),
        f"element chunk {num_chunks}",
        *(f"property float {name}" for name in CHUNK_PROPERTIES),
        f"element vertex {num_gaussians}",
        *(f"property uint {name}" for name in VERTEX_PROPERTIES),
    ]
    return "\n".join([*lines, "end_header", ""]).encode("ascii")


def _morton_order(means: Tensor) -> Tensor:
    """Indices (N,) that sort positions (N, 3) along a Morton curve through their bounding box."""
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
    return codes.argsort(stable=True)


def _within_chunks(columns: Tensor) -> tuple[Tensor, Tensor]:
    """Places values between the least and the greatest of their chunk.

    Args:
        columns: (3, n) with n a multiple of `CHUNK_SIZE`.

    Returns:
        The values in [0, 1], (3, n), 0 where a chunk is constant; and the bounds (n / CHUNK_SIZE, 6), least first.
    """
    chunked = columns.view(3, -1, CHUNK_SIZE)
    low, high = chunked.aminmax(dim=2, keepdim=True)
    # What spans nothing is not divided by it.
    unit = (chunked - low).div_((high - low).clamp_(min=_TINY)).clamp_(0.0, 1.0)
    return unit.view(3, -1), torch.cat([low, high]).squeeze(2).t()


def _pack(units: Tensor, bits: tuple[int, ...]) -> Tensor:
    """Packs values in [0, 1], (k, n), into the bits of int32, the first into the highest ones; (n,)."""
    packed = torch.zeros(units.shape[1], dtype=torch.int32)
    for unit, num_bits in zip(units, bits, strict=True):
        packed = (packed << num_bits).bitwise_or_((unit * ((1 << num_bits) - 1) + 0.5).to(torch.int32))
    return packed


def _pack_quaternions(columns: Tensor) -> Tensor:
    """Packs unit quaternions w x y z, (4, n): which component is the largest, and the others, from +-sqrt(1/2)."""
    largest = columns.abs().argmax(dim=0, keepdim=True)
    others = torch.tensor(_OTHER_COMPONENTS).t()[:, largest[0]]
    # q and -q are one rotation: the one with a positive largest component is stored.
    signs = columns.gather(0, largest).sign_()
    units = columns.gather(0, others).mul_(signs).mul_(math.sqrt(0.5)).add_(0.5).clamp_(0.0, 1.0)
    return _pack(units, _QUATERNION_BITS).bitwise_or_(largest[0].to(torch.int32) << 30)


def read_compressed_ply(content: bytes) -> Splat:
    """Reads a compressed .ply, with or without colours in its chunks; spherical harmonics above 0 are passed over.

    Args:
        content: The whole file.

    Returns:
        The Gaussians in the file's order, and the camera where the file is ours.

    Raises:
        SplatError: Not a compressed .ply, broken or truncated.
    """
    header = parse_header(content)
    elements = read_elements(content, header)
    chunks, vertices = (
        _columns(elements, "chunk", CHUNK_PROPERTIES[:12], "f4"),
        _columns(elements, "vertex", VERTEX_PROPERTIES, "u4"),
    )
    num_gaussians = len(vertices)
    if len(chunks) * CHUNK_SIZE < num_gaussians:
        raise SplatError(
            f"the .ply has {len(chunks)} chunks for {num_gaussians} Gaussians: there must be one for every {CHUNK_SIZE}"
        )
    bounds = torch.from_numpy(chunks).repeat_interleave(CHUNK_SIZE, dim=0)[:num_gaussians]
    packed = torch.from_numpy(vertices.astype(np.int64))
    colors = _unpack(packed[:, 3], _COLOR_BITS)
    rgb = colors[:, :3]
    if set(CHUNK_PROPERTIES[12:]) <= set(elements["chunk"].dtype.names or ()):
        color_chunks = torch.from_numpy(_columns(elements, "chunk", CHUNK_PROPERTIES[12:], "f4"))
        rgb = _between(color_chunks.repeat_interleave(CHUNK_SIZE, dim=0)[:num_gaussians], rgb)
    gaussians = Gaussians(
        means=_between(bounds[:, 0:6], _unpack(packed[:, 0], _VECTOR_BITS)),
        scales=_between(bounds[:, 6:12], _unpack(packed[:, 2], _VECTOR_BITS)).exp_(),
        quaternions_wxyz=_unpack_quaternions(packed[:, 1]),
        colors_linear=srgb_to_linear(rgb.clamp(0.0, 1.0)),
        opacities=colors[:, 3].contiguous(),
    )
    for name in ("means", "scales", "colors_linear"):
        num_bad = int((~getattr(gaussians, name).isfinite()).sum())
        if num_bad:
            raise SplatError(f"the .ply has {num_bad} values of {name} that are not finite: it is broken")
    return Splat(gaussians=gaussians, camera=camera_of(header.comments, elements), frame=frame_of(header.comments))


def _columns(
    elements: dict[str, NDArray[np.void]], name: str, properties: tuple[str, ...], type_: str
) -> NDArray[np.generic]:
    """Properties of an element as one array (count, len(properties)) in this machine's byte order."""
    element = elements.get(name)
    fields = {} if element is None else dict(element.dtype.fields or {})
    wrong = [field for field in properties if field not in fields or fields[field][0].str[1:] != type_]
    if element is None or wrong:
        raise SplatError(
            f"the .ply is not a compressed one: its element {name!r} has no {', '.join(wrong)} of the type "
            f"{'float' if type_ == 'f4' else 'uint'}"
        )
    columns: NDArray[np.generic] = np.empty((len(element), len(properties)), dtype=type_)
    for index, field in enumerate(properties):
        columns[:, index] = element[field]
    return columns


def _unpack(packed: Tensor, bits: tuple[int, ...]) -> Tensor:
    """The reverse of `_pack`: values in [0, 1], (n, k), of int64 (n,)."""
    units = torch.empty(len(packed), len(bits))
    shift = sum(bits)
    for index, num_bits in enumerate(bits):
        shift -= num_bits
        mask = (1 << num_bits) - 1
        units[:, index] = ((packed >> shift) & mask).to(torch.float32).div_(mask)
    return units


def _between(bounds: Tensor, units: Tensor) -> Tensor:
    """Values (n, 3) at `units` between the bounds (n, 6), least first."""
    return bounds[:, :3] * (1.0 - units) + bounds[:, 3:] * units


def _unpack_quaternions(packed: Tensor) -> Tensor:
    """Unit quaternions w x y z with w >= 0, (n, 4), of int64 (n,)."""
    others = _unpack(packed, _QUATERNION_BITS).sub_(0.5).mul_(math.sqrt(2.0))
    largest = packed >> 30
    quaternions = torch.empty(len(packed), 4)
    quaternions.scatter_(1, torch.tensor(_OTHER_COMPONENTS)[largest], others)
    remainder = (1.0 - others.square().sum(dim=1)).clamp_(min=0.0).sqrt_()
    quaternions.scatter_(1, largest.unsqueeze(1), remainder.unsqueeze(1))
    quaternions = torch.nn.functional.normalize(quaternions, dim=1)
    return canonicalize(quaternions)

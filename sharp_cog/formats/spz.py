"""Niantic's .spz: 20 bytes a Gaussian, then compressed.

The layout is described at https://github.com/nianticlabs/spz: attribute after attribute, positions in fixed point,
logarithms of scales in sixteenths, quaternions by their three smaller components, axes RUB (right, up, back: OpenGL's).
Version 3 is one gzip stream, version 4 has a plain header and one zstd stream for each attribute.
"""

from __future__ import annotations

import importlib.util
import math
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharp_cog.errors import NotInstalledError, OutputError, SplatError
from sharp_cog.formats.ply import SH_C0, vertex_block
from sharp_cog.formats.scene import Frame, Splat
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.quaternions import canonicalize
from sharp_cog.imaging.color import srgb_to_linear
from sharp_cog.text import reason_of

SPZ_FRAME = Frame(axes="opengl")
MAGIC = 0x5053474E
"""NGSP, little-endian."""

FRACTION_BITS = 12
"""Of positions: a quarter of a millimetre."""
COLOR_SCALE = 0.15
"""Niantic's factor from spherical harmonics to the middle of a byte."""
LOG_SCALE_STEPS, LOG_SCALE_OFFSET = 16.0, 10.0

MAX_GAUSSIANS = 10_000_000
"""In a file that is read: more, Niantic's own reader refuses too."""

_POSITION_LIMIT = (1 << 23) - 1
_HEADER, _NGSP_HEADER, _TOC_ENTRY = struct.Struct("<IIIBBBB"), struct.Struct("<IIIBBBBI12x"), struct.Struct("<QQ")
_NUM_HARMONICS = (0, 3, 8, 15, 24)
"""Coefficients above degree 0, by the degree."""
_OTHER_COMPONENTS = ((1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2))
"""The components x y z w that are stored, by the index of the largest one, which is not."""
_MAGNITUDE_BITS = 9

_GZIP_LEVEL, _ZSTD_LEVEL = 5, 3
_BLOCK = 1 << 20
"""Bytes that one thread compresses at a time."""
_MAX_EXTENSION_BYTES = _PIECE = 1 << 24
_WINDOW = 1 << 15
"""How far deflate looks back: what a block is told of the one before it."""


def write_spz(
    file: BinaryIO, gaussians: Gaussians, camera: Camera | None, frame: Frame = SPZ_FRAME, *, version: int = 3
) -> None:
    """Writes a .spz; it has no place for the camera and the frame.

    Positions are exact to 0.12 mm up to 2 km, and to fewer bits beyond; logarithms of scales to 1 / 32, and what is
    beyond e^-10 m or e^5.9 m becomes these; colours to 0.3 %, opacities to 0.2 %, components of quaternions to 0.0007.

    Args:
        file: Where to.
        gaussians: N Gaussians on any device.
        camera: Not written.
        frame: Not written: readers take axes as OpenGL's.
        version: 3 or 4.

    Raises:
        PredictionError: A value is not finite.
        OutputError: A position is beyond 8388 km.
        NotInstalledError: Version 4 needs the package zstandard.
    """
    del camera, frame
    block = torch.from_numpy(vertex_block(gaussians))
    num_fraction_bits = _fraction_bits(block[:, 0:3])
    planes: list[NDArray[Any]] = [
        _pack_positions(block[:, 0:3], num_fraction_bits),
        _to_bytes(block[:, 6:7].sigmoid().mul_(255.0)),
        _to_bytes(block[:, 3:6].mul(COLOR_SCALE).add_(0.5).mul_(255.0)),
        _to_bytes(block[:, 7:10].add(LOG_SCALE_OFFSET).mul_(LOG_SCALE_STEPS)),
        _pack_quaternions(block[:, 10:14]),
    ]
    content = [plane.tobytes() for plane in planes if plane.size]  # Empty streams are left out.
    if version == 3:
        header = _HEADER.pack(MAGIC, 3, len(block), 0, num_fraction_bits, 0, 0)
        file.writelines(_gzip(b"".join([header, *content])))
        return
    require_zstandard()
    import zstandard

    with ThreadPoolExecutor() as executor:
        streams = list(executor.map(lambda plane: zstandard.ZstdCompressor(_ZSTD_LEVEL).compress(plane), content))
    file.write(_NGSP_HEADER.pack(MAGIC, 4, len(block), 0, num_fraction_bits, 0, len(streams), _NGSP_HEADER.size))
    file.writelines(_TOC_ENTRY.pack(len(stream), len(plane)) for stream, plane in zip(streams, content, strict=True))
    file.writelines(streams)


def require_zstandard() -> None:
    """Checks that version 4 can be written and read.

    Raises:
        NotInstalledError: The package zstandard is not installed.
    """
    if importlib.util.find_spec("zstandard") is None:
        raise NotInstalledError(
            "version 4 of .spz needs the extra 'spz': run .venv/bin/pip install -e '.[spz]', or choose version 3"
        )


def _gzip(content: bytes) -> list[bytes]:
    """One gzip member, compressed in blocks at the same time; each block starts with the window of the one before."""
    starts = range(0, max(1, len(content)), _BLOCK)

    def compressed(start: int) -> bytes:
        is_last = start + _BLOCK >= len(content)
        deflate = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, -15, 9, zdict=content[max(0, start - _WINDOW) : start])
        return deflate.compress(content[start : start + _BLOCK]) + deflate.flush(
            zlib.Z_FINISH if is_last else zlib.Z_SYNC_FLUSH
        )

    with ThreadPoolExecutor() as executor:
        blocks = list(executor.map(compressed, starts))
    header = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
    return [header, *blocks, struct.pack("<II", zlib.crc32(content), len(content) & 0xFFFFFFFF)]


def _fraction_bits(means: Tensor) -> int:
    """As many as leave room for the farthest position."""
    farthest = means.abs().amax().item() if len(means) else 0.0
    if farthest > _POSITION_LIMIT:
        raise OutputError(f"a Gaussian is {farthest:.0f} m from the origin, a .spz ends at {_POSITION_LIMIT}: scale it")
    room = math.floor(math.log2(_POSITION_LIMIT / farthest)) if farthest > 1.0 else FRACTION_BITS
    return min(FRACTION_BITS, room)


def _pack_positions(means: Tensor, num_fraction_bits: int) -> NDArray[np.uint8]:
    """24-bit little-endian integers, (N, 9) bytes."""
    fixed = means.mul(float(1 << num_fraction_bits)).round_().clamp_(-_POSITION_LIMIT, _POSITION_LIMIT).to(torch.int32)
    return np.ascontiguousarray(fixed.numpy().astype("<i4", copy=False).view(np.uint8).reshape(-1, 3, 4)[..., :3])


def _to_bytes(values: Tensor) -> NDArray[np.uint8]:
    packed: NDArray[np.uint8] = values.round_().clamp_(0.0, 255.0).to(torch.uint8).numpy()
    return packed


def _pack_quaternions(quaternions_wxyz: Tensor) -> NDArray[np.uint32]:
    """Which component is the largest, and the others by sign and magnitude up to sqrt(1/2), in 32 bits."""
    columns = quaternions_wxyz[:, [1, 2, 3, 0]].t().contiguous()
    largest = columns.abs().argmax(dim=0, keepdim=True)
    others = torch.tensor(_OTHER_COMPONENTS).t()[:, largest[0]]
    # q and -q are one rotation: the one with a positive largest component is stored.
    smaller = columns.gather(0, others).mul_(columns.gather(0, largest).sign_())
    most = (1 << _MAGNITUDE_BITS) - 1
    magnitudes = smaller.abs().mul_(math.sqrt(2.0) * most).round_().clamp_(max=most).to(torch.int32)
    codes = magnitudes | smaller.lt(0).to(torch.int32) << _MAGNITUDE_BITS
    packed = largest[0].to(torch.int32)
    for code in codes:
        packed = packed << _MAGNITUDE_BITS + 1 | code
    return packed.numpy().view(np.uint32).astype("<u4", copy=False)


def read_spz(content: bytes) -> Splat:
    """Reads a .spz of versions 1 to 4; spherical harmonics above degree 0 are passed over.

    Args:
        content: The whole file.

    Returns:
        The Gaussians in the file's order and OpenGL axes; the camera is not known.

    Raises:
        SplatError: Not a .spz, broken, truncated, or of another version.
        NotInstalledError: Version 4 needs the package zstandard.
    """
    if content.startswith(b"\x1f\x8b"):
        version, num_fraction_bits, planes = _read_gzip(content)
    else:
        version, num_fraction_bits, planes = _read_ngsp(content)
    positions, alphas, colors, scales, rotations = planes
    if version == 1:
        means = torch.from_numpy(positions.view("<f2").astype(np.float32).reshape(-1, 3))
    else:
        fixed = np.zeros((len(alphas), 3, 4), dtype=np.uint8)
        fixed[..., 1:] = positions.reshape(-1, 3, 3)
        # In the upper three bytes of four, so that the sign is where it belongs.
        means = torch.from_numpy(fixed.view("<i4")[..., 0].astype(np.float32)) / float(1 << num_fraction_bits + 8)
    if not means.isfinite().all():
        raise SplatError("the .spz has positions that are not finite: it is broken")
    harmonics = torch.from_numpy(colors.astype(np.float32).reshape(-1, 3)).div_(255.0).sub_(0.5).div_(COLOR_SCALE)
    log_scales = torch.from_numpy(scales.astype(np.float32).reshape(-1, 3)).div_(LOG_SCALE_STEPS)
    gaussians = Gaussians(
        means=means,
        scales=log_scales.sub_(LOG_SCALE_OFFSET).exp_(),
        quaternions_wxyz=_unpack_quaternions(rotations, len(alphas), version),
        colors_linear=srgb_to_linear(harmonics.mul_(SH_C0).add_(0.5).clamp_(0.0, 1.0)),
        opacities=torch.from_numpy(alphas.astype(np.float32)).div_(255.0),
    )
    return Splat(gaussians=gaussians, camera=None, frame=SPZ_FRAME)


Planes = list[NDArray[np.uint8]]


def _plane_sizes(version: int, count: int, degree: int) -> list[int]:
    """Bytes of positions, alphas, colours, scales, rotations and harmonics."""
    if count > MAX_GAUSSIANS:
        raise SplatError(f"the .spz promises {count} Gaussians, the limit is {MAX_GAUSSIANS}: split it")
    if degree >= len(_NUM_HARMONICS):
        raise SplatError(f"the .spz has spherical harmonics of degree {degree}: at most {len(_NUM_HARMONICS) - 1}")
    per_gaussian = (6 if version == 1 else 9, 1, 3, 3, 4 if version >= 3 else 3, 3 * _NUM_HARMONICS[degree])
    return [count * size for size in per_gaussian]


def _read_gzip(content: bytes) -> tuple[int, int, Planes]:
    """Version, fraction bits and planes of the versions in one gzip stream."""
    try:
        inflate = zlib.decompressobj(31)
        head = inflate.decompress(content, _HEADER.size)
        if len(head) < _HEADER.size:
            raise SplatError("the .spz ends within its header: it is truncated")
        magic, version, count, degree, num_fraction_bits, _, _ = _HEADER.unpack(head)
        if magic != MAGIC:
            raise SplatError("the file is gzip, but not a .spz inside")
        if version not in (1, 2, 3):
            raise SplatError(f"the .spz has version {version}: 1 to 4 can be read")
        sizes = _plane_sizes(version, count, degree)
        # Deflate makes at most 1032 bytes of one: a count beyond that is a lie, and nothing is allocated for it.
        if sum(sizes) > 1032 * len(content):
            raise SplatError(f"the .spz promises {count} Gaussians in {len(content)} bytes: it is broken")
        body = _read_at_most(lambda size: inflate.decompress(inflate.unconsumed_tail, size), sum(sizes[:5]))
        # What may follow are harmonics, extensions, and the checksum, which is compared when the stream ends.
        missing = sizes[5]
        while missing and (piece := inflate.decompress(inflate.unconsumed_tail, min(missing, _PIECE))):
            missing -= len(piece)
        inflate.decompress(inflate.unconsumed_tail, _MAX_EXTENSION_BYTES)
        if not inflate.eof:
            raise SplatError("the .spz does not end where its content does: it is truncated or broken")
    except zlib.error as error:
        raise SplatError(f"the .spz cannot be decompressed: {reason_of(error)}: it is broken") from error
    return version, num_fraction_bits, _split(body, sizes)


def _read_ngsp(content: bytes) -> tuple[int, int, Planes]:
    """Version, fraction bits and planes of version 4."""
    if len(content) < _NGSP_HEADER.size:
        raise SplatError("the .spz ends within its header: it is truncated")
    _, version, count, degree, num_fraction_bits, _, num_streams, toc = _NGSP_HEADER.unpack_from(content)
    if version != 4:
        raise SplatError(f"the .spz has version {version}: 1 to 4 can be read")
    require_zstandard()
    import zstandard

    sizes = _plane_sizes(version, count, degree)
    wanted = [size for size in sizes if size]
    position = toc + num_streams * _TOC_ENTRY.size
    if num_streams != len(wanted) or toc < _NGSP_HEADER.size or position > len(content):
        raise SplatError(f"the .spz has {num_streams} streams, {len(wanted)} belong there: it is broken")
    body = []
    for index, size in enumerate(wanted[:5]):
        num_compressed, num_plain = _TOC_ENTRY.unpack_from(content, toc + index * _TOC_ENTRY.size)
        stream = content[position : position + num_compressed]
        if num_plain != size or len(stream) != num_compressed:
            raise SplatError(f"stream {index} of the .spz has not the size that {count} Gaussians need: it is broken")
        position += num_compressed
        # The frame's own promise is not believed either.
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(stream)
        try:
            body.append(_read_at_most(reader.read, size))
        except zstandard.ZstdError as error:
            raise SplatError(f"the .spz cannot be decompressed: {reason_of(error)}: it is broken") from error
    return version, num_fraction_bits, _split(b"".join(body), sizes)


def _read_at_most(read: Callable[[int], bytes], size: int) -> bytes:
    """Reads so many bytes piece by piece, so that a lie about the size allocates nothing."""
    pieces, missing = [], size
    while missing and (piece := read(min(missing, _PIECE))):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def _split(body: bytes, sizes: list[int]) -> Planes:
    """The five planes that are used, as bytes."""
    if len(body) < sum(sizes[:5]):
        raise SplatError(f"the .spz has {len(body)} bytes of {sum(sizes[:5])}: it is truncated")
    ends = np.cumsum(sizes[:5]).tolist()
    whole = np.frombuffer(body, dtype=np.uint8)
    return [whole[end - size : end] for end, size in zip(ends, sizes, strict=False)]


def _unpack_quaternions(plane: NDArray[np.uint8], count: int, version: int) -> Tensor:
    """Unit quaternions w x y z with w >= 0, (N, 4)."""
    xyzw = torch.empty(count, 4)
    if version < 3:
        xyz = torch.from_numpy(plane.astype(np.float32).reshape(-1, 3)).div_(127.5).sub_(1.0)
        xyzw[:, :3] = xyz
        xyzw[:, 3] = (1.0 - xyz.square().sum(dim=1)).clamp_(min=0.0).sqrt_()
    else:
        packed = torch.from_numpy(plane.view("<u4").astype(np.int64))
        largest = packed >> 30
        most = (1 << _MAGNITUDE_BITS) - 1
        codes = torch.stack([packed >> shift & (2 * most + 1) for shift in (20, 10, 0)], dim=1)
        smaller = (codes & most).to(torch.float32).mul_(math.sqrt(0.5) / most)
        smaller = torch.where(codes > most, -smaller, smaller)
        xyzw.scatter_(1, torch.tensor(_OTHER_COMPONENTS)[largest], smaller)
        remainder = (1.0 - smaller.square().sum(dim=1)).clamp_(min=0.0).sqrt_()
        xyzw.scatter_(1, largest.unsqueeze(1), remainder.unsqueeze(1))
    # What has no length, which only a broken file holds, is no rotation.
    xyzw[(xyzw == 0).all(dim=1), 3] = 1.0
    quaternions = torch.nn.functional.normalize(xyzw[:, [3, 0, 1, 2]], dim=1)
    return canonicalize(quaternions)

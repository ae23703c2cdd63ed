"""Niantic's .spz: 20 bytes for each Gaussian, then compressed.

The layout is described at https://github.com/nianticlabs/spz: attribute after attribute, positions in fixed point,
logarithms of scales in sixteenths, quaternions by their three smallest components, axes RUB (right, up, back), as in
OpenGL. Version 3 is one gzip stream; version 4 has a plain header and one zstd stream for each attribute.
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
from sharp_cog.formats.quaternions import drop_largest, restore_largest, to_unit
from sharp_cog.formats.scene import Frame, Splat
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.imaging.color import srgb_to_linear
from sharp_cog.text import reason_of

SPZ_FRAME = Frame(axes="opengl")
"""Frame that readers assume."""
MAGIC = 0x5053474E
"""The letters NGSP, little-endian."""

FRACTION_BITS = 12
"""Default number of fraction bits of a position: steps of a quarter of a millimetre."""
# Smaller than SH_C0, so that colours beyond [0, 1] fit into a byte, for harmonics that bring them back.
COLOR_SCALE = 0.15
"""Niantic's factor from spherical harmonics to colours around the middle of a byte."""
LOG_SCALE_STEPS = 16.0
"""Steps in a unit of the logarithm of a scale."""
LOG_SCALE_OFFSET = 10.0
"""Negative of the smallest logarithm of a scale."""

MAX_GAUSSIANS = 10_000_000
"""Maximum number of Gaussians that are read; Niantic's own reader has the same limit."""

_POSITION_LIMIT = (1 << 23) - 1
"""Largest position in steps: positions have 24 bits, one of them for the sign."""
_HEADER = struct.Struct("<IIIBBBB")
"""Header of versions 1 to 3: magic, version, count, degree, fraction bits, flags, reserved."""
_NGSP_HEADER = struct.Struct("<IIIBBBBI12x")
"""Header of version 4: the same with the number of streams in place of the reserved byte, and the table's offset."""
_TOC_ENTRY = struct.Struct("<QQ")
"""Sizes of a stream of version 4, compressed and uncompressed."""
_NUM_HARMONICS = (0, 3, 8, 15, 24)
"""Number of spherical harmonics above degree 0, by the degree."""
_MAGNITUDE_BITS = 9
"""Bits of a quaternion's component, besides the sign."""

_GZIP_LEVEL = 5
_ZSTD_LEVEL = 3
_BLOCK = 1 << 20
"""Number of bytes that one thread compresses at a time."""
_WINDOW = 1 << 15
"""Number of preceding bytes that deflate refers to."""
_PIECE = 1 << 24
"""Maximum bytes that are decompressed at a time."""
_MAX_EXTENSION_BYTES = 1 << 24
"""Maximum bytes that may follow the Gaussians."""

_MAX_DEFLATE_RATIO = 1032
"""Maximum expansion by deflate; a file that promises more is broken."""

Planes = list[NDArray[np.uint8]]
"""Bytes of the positions, opacities, colours, scales and rotations of all Gaussians."""


def write_spz(
    file: BinaryIO, gaussians: Gaussians, camera: Camera | None, frame: Frame = SPZ_FRAME, *, version: int = 3
) -> None:
    """Write a .spz, which cannot store the camera and the frame.

    Positions are exact to 0.12 mm up to 2 km, and to fewer bits beyond; logarithms of scales to 1 / 32 within the range
    from e^-10 m to e^5.9 m; colours to 0.3 %, opacities to 0.2 %, components of quaternions to 0.0007.

    Args:
        file: Binary file to write to.
        gaussians: N Gaussians on any device.
        camera: Ignored.
        frame: Ignored; readers assume OpenGL axes.
        version: 3 or 4.

    Raises:
        PredictionError: A value is not finite.
        OutputError: A position is farther than 8388 km from the origin.
        NotInstalledError: Version 4 is asked for, and the package zstandard is not installed.
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
    content = [plane.tobytes() for plane in planes if plane.size]  # Empty streams are omitted.
    if version == 3:
        # No harmonics above degree 0; no flags: neither antialiased nor with extensions.
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
    """Check that version 4 can be written and read.

    Raises:
        NotInstalledError: The package zstandard is not installed.
    """
    if importlib.util.find_spec("zstandard") is None:
        raise NotInstalledError(
            "version 4 of .spz needs the extra 'spz': run .venv/bin/pip install -e '.[spz]', or choose version 3"
        )


def _gzip(content: bytes) -> list[bytes]:
    """Compress content in parallel; return one gzip member in parts."""
    starts = range(0, len(content), _BLOCK)

    def compress(start: int) -> bytes:
        is_last = start + _BLOCK >= len(content)
        # -15 means raw deflate: all blocks share the header and the checksum below. 9 is the memory level.
        # The bytes before the block are its dictionary: otherwise each block would start with an empty window.
        deflate = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, -15, 9, zdict=content[max(0, start - _WINDOW) : start])
        # A flush with Z_SYNC_FLUSH ends at a whole byte, so that the next block can be appended.
        return deflate.compress(content[start : start + _BLOCK]) + deflate.flush(
            zlib.Z_FINISH if is_last else zlib.Z_SYNC_FLUSH
        )

    with ThreadPoolExecutor() as executor:
        blocks = list(executor.map(compress, starts))
    # Neither a name nor a time, so that the same splat always has the same bytes.
    header = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
    return [header, *blocks, struct.pack("<II", zlib.crc32(content), len(content) & 0xFFFFFFFF)]


def _fraction_bits(means: Tensor) -> int:
    """Return the number of fraction bits: `FRACTION_BITS`, or fewer if the farthest position needs the room."""
    farthest = means.abs().amax().item() if len(means) else 0.0
    if farthest > _POSITION_LIMIT:
        raise OutputError(f"a Gaussian is {farthest:.0f} m from the origin, a .spz ends at {_POSITION_LIMIT}: scale it")
    # Up to 1 m there is room for 22 bits, and the farthest position may be at 0.
    room = math.floor(math.log2(_POSITION_LIMIT / farthest)) if farthest > 1.0 else FRACTION_BITS
    return min(FRACTION_BITS, room)


def _pack_positions(means: Tensor, num_fraction_bits: int) -> NDArray[np.uint8]:
    """Return positions as 24-bit little-endian integers, (N, 3, 3) bytes."""
    # The upper byte of an int32 in this range repeats the sign, so the lower three are the whole number.
    fixed = means.mul(float(1 << num_fraction_bits)).round_().clamp_(-_POSITION_LIMIT, _POSITION_LIMIT).to(torch.int32)
    return np.ascontiguousarray(fixed.numpy().astype("<i4", copy=False).view(np.uint8).reshape(-1, 3, 4)[..., :3])


def _to_bytes(values: Tensor) -> NDArray[np.uint8]:
    packed: NDArray[np.uint8] = values.round_().clamp_(0.0, 255.0).to(torch.uint8).numpy()
    return packed


def _pack_quaternions(quaternions_wxyz: Tensor) -> NDArray[np.uint32]:
    """Pack unit quaternions (N, 4) into 32 bits each.

    The bits are the index of the largest component, then sign and magnitude of the others, relative to sqrt(1/2).
    """
    # The components' order is x y z w.
    largest, others = drop_largest(quaternions_wxyz[:, [1, 2, 3, 0]].t().contiguous())
    most = (1 << _MAGNITUDE_BITS) - 1
    magnitudes = others.abs().mul_(math.sqrt(2.0) * most).round_().clamp_(max=most).to(torch.int32)
    codes = magnitudes | (others.lt(0).to(torch.int32) << _MAGNITUDE_BITS)
    packed = largest.to(torch.int32)
    for code in codes:
        packed = packed << (_MAGNITUDE_BITS + 1) | code
    return packed.numpy().view(np.uint32).astype("<u4", copy=False)


def read_spz(content: bytes) -> Splat:
    """Read a .spz of the versions 1 to 4; spherical harmonics above degree 0 are ignored.

    Args:
        content: The whole file.

    Returns:
        The Gaussians in the file's order and OpenGL axes, without camera.

    Raises:
        SplatError: The content is not a .spz, is broken or truncated, or has another version.
        NotInstalledError: The file has version 4, and the package zstandard is not installed.
    """
    if content.startswith(b"\x1f\x8b"):
        version, num_fraction_bits, planes = _read_gzip(content)
    else:
        version, num_fraction_bits, planes = _read_ngsp(content)
    positions, alphas, colors, scales, rotations = planes
    if version == 1:
        means = torch.from_numpy(positions.view("<f2").astype(np.float32).reshape(-1, 3))
    else:
        # 24 bits in the upper three bytes of four: the sign bit is the same, the factor is 2^8.
        fixed = np.zeros((len(alphas), 3, 4), dtype=np.uint8)
        fixed[..., 1:] = positions.reshape(-1, 3, 3)
        means = torch.from_numpy(fixed.view("<i4")[..., 0].astype(np.float32)) / float(1 << num_fraction_bits + 8)
    harmonics = torch.from_numpy(colors.astype(np.float32).reshape(-1, 3)).div_(255.0).sub_(0.5).div_(COLOR_SCALE)
    log_scales = torch.from_numpy(scales.astype(np.float32).reshape(-1, 3)).div_(LOG_SCALE_STEPS)
    gaussians = Gaussians(
        means=means,
        scales=log_scales.sub_(LOG_SCALE_OFFSET).exp_(),
        quaternions_wxyz=_unpack_quaternions(rotations, version),
        colors_linear=srgb_to_linear(harmonics.mul_(SH_C0).add_(0.5)),
        opacities=torch.from_numpy(alphas.astype(np.float32)).div_(255.0),
    )
    return Splat(gaussians=gaussians, camera=None, frame=SPZ_FRAME)


def _plane_sizes(version: int, count: int, degree: int) -> list[int]:
    """Return the sizes in bytes of positions, opacities, colours, scales, rotations and harmonics."""
    if count > MAX_GAUSSIANS:
        raise SplatError(f"the .spz promises {count} Gaussians, the limit is {MAX_GAUSSIANS}: split it")
    if degree >= len(_NUM_HARMONICS):
        raise SplatError(
            f"the .spz has spherical harmonics of degree {degree}, the limit is {len(_NUM_HARMONICS) - 1}: it is broken"
        )
    # Version 1 has half floats for positions; versions 1 and 2 have one byte for each of x y z of a quaternion.
    per_gaussian = (6 if version == 1 else 9, 1, 3, 3, 4 if version >= 3 else 3, 3 * _NUM_HARMONICS[degree])
    return [count * size for size in per_gaussian]


def _read_gzip(content: bytes) -> tuple[int, int, Planes]:
    """Read versions 1 to 3: return the version, the number of fraction bits, and the planes."""
    try:
        # 31 is the largest window, 15, and 16 for a gzip header.
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
        # A header can promise any count, so it is compared with the bytes of the file before anything is allocated.
        if sum(sizes) > _MAX_DEFLATE_RATIO * len(content):
            raise SplatError(f"the .spz promises {count} Gaussians in {len(content)} bytes: it is broken")
        body = _read_at_most(lambda size: inflate.decompress(inflate.unconsumed_tail, size), sum(sizes[:5]))
        # Harmonics and extensions are skipped; zlib compares the checksum when it reaches the end of the stream.
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
    """Read version 4: return the version, the number of fraction bits, and the planes."""
    if len(content) < _NGSP_HEADER.size:
        raise SplatError("the .spz ends within its header: it is truncated")
    _, version, count, degree, num_fraction_bits, _, num_streams, toc = _NGSP_HEADER.unpack_from(content)
    if version != 4:
        raise SplatError(f"the .spz has version {version}: 1 to 4 can be read")
    require_zstandard()
    import zstandard

    sizes = _plane_sizes(version, count, degree)
    # Empty streams are omitted. In a file with Gaussians only the harmonics, which come last, can be empty.
    wanted = [size for size in sizes if size]
    position = toc + num_streams * _TOC_ENTRY.size
    if num_streams != len(wanted) or toc < _NGSP_HEADER.size or position > len(content):
        raise SplatError(f"the .spz has {num_streams} streams instead of {len(wanted)}: it is broken")
    body = []
    for index, size in enumerate(wanted[:5]):
        num_compressed, num_plain = _TOC_ENTRY.unpack_from(content, toc + index * _TOC_ENTRY.size)
        stream = content[position : position + num_compressed]
        if num_plain != size or len(stream) != num_compressed:
            raise SplatError(f"stream {index} of the .spz has the wrong size for {count} Gaussians: it is broken")
        position += num_compressed
        # The size in the stream's own frame may be false too, so it is read piece by piece.
        # It also states how much memory its decoder needs: up to 128 MiB is accepted.
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(stream)
        try:
            body.append(_read_at_most(reader.read, size))
        except zstandard.ZstdError as error:
            raise SplatError(f"the .spz cannot be decompressed: {reason_of(error)}: it is broken") from error
    return version, num_fraction_bits, _split(b"".join(body), sizes)


def _read_at_most(read: Callable[[int], bytes], size: int) -> bytes:
    """Read up to `size` bytes piece by piece: memory grows with the bytes that exist, not with the promise."""
    pieces, missing = [], size
    while missing and (piece := read(min(missing, _PIECE))):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def _split(body: bytes, sizes: list[int]) -> Planes:
    """Split the body into the five planes that are used."""
    if len(body) < sum(sizes[:5]):
        raise SplatError(f"the .spz has {len(body)} bytes of {sum(sizes[:5])}: it is truncated")
    ends = np.cumsum(sizes[:5]).tolist()
    whole = np.frombuffer(body, dtype=np.uint8)
    # `strict=False` leaves out the sixth size, that of the harmonics.
    return [whole[end - size : end] for end, size in zip(ends, sizes, strict=False)]


def _unpack_quaternions(plane: NDArray[np.uint8], version: int) -> Tensor:
    """Return unit quaternions w x y z with w >= 0, (N, 4)."""
    if version < 3:
        # w is not stored: it is never negative, so it follows from the others.
        xyz = torch.from_numpy(plane.astype(np.float32).reshape(-1, 3)).div_(127.5).sub_(1.0)
        w = (1.0 - xyz.square().sum(dim=1, keepdim=True)).clamp_(min=0.0).sqrt_()
        return to_unit(torch.cat([w, xyz], dim=1))
    packed = torch.from_numpy(plane.view("<u4").astype(np.int64))
    most = (1 << _MAGNITUDE_BITS) - 1
    codes = torch.stack([packed >> shift & (2 * most + 1) for shift in (20, 10, 0)], dim=1)
    # Sign and magnitude, not two's complement: a code above `most` is negative.
    others = (codes & most).to(torch.float32).mul_(math.sqrt(0.5) / most)
    others = torch.where(codes > most, -others, others)
    return to_unit(restore_largest(packed >> 30, others)[:, [3, 0, 1, 2]])

"""Niantic's .spz: 20 bytes for each Gaussian, then compressed.

The layout is described at https://github.com/nianticlabs/spz: attribute after attribute, positions in fixed point,
logarithms of scales in sixteenths, quaternions by their three smallest components, spherical harmonics in bytes.
Versions 1 to 3 are one gzip stream; version 4 has a plain header and one zstd stream for each attribute. Axes are RUB
(right, up, back), as in OpenGL, unless the extension `SPZ_ADOBE_coordinate_system` names others.
"""

from __future__ import annotations

import importlib.util
import io
import math
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharp_cog.errors import NotInstalledError, OutputError, SplatError
from sharp_cog.formats.ply import SH_C0, vertex_block
from sharp_cog.formats.quaternions import drop_largest, restore_largest, to_unit
from sharp_cog.formats.scene import PHOTOGRAPH_FRAME, Frame, Splat
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import MAX_DEGREE, NUM_BANDS, Gaussians
from sharp_cog.geometry.transform import change_axes
from sharp_cog.imaging.color import srgb_to_linear
from sharp_cog.text import reason_of

SPZ_FRAME = Frame(axes="opengl")
"""Frame that readers assume where the file names no other."""
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
_LEGACY_VERSIONS = (1, 2, 3)
_HEADER = struct.Struct("<IIIBBBB")
"""Header of versions 1 to 3: magic, version, count, degree, fraction bits, flags, reserved."""
_NGSP_HEADER = struct.Struct("<IIIBBBBI12x")
"""Header of version 4: the same with the number of streams in place of the reserved byte, and the table's offset."""
_TOC_ENTRY = struct.Struct("<QQ")
"""Sizes of a stream of version 4, compressed and uncompressed."""
HARMONICS_STEPS = 128.0
"""Steps in a unit of a coefficient of spherical harmonics; codes are bytes around 128."""
_HARMONICS_BITS = (5, 4)
"""Bits of a code that are kept, for degree 1 and for the others, as by Niantic's own writer: zeros compress well."""

_HAS_EXTENSIONS = 2
"""Flag of a file with extensions."""
_KNOWN_FLAGS = 1 | _HAS_EXTENSIONS  # 1: the splat was trained with antialiasing.
_FIRST_WITH_EXTENSIONS = 3
"""First version that gets extensions: readers that know no newer one than 2 refuse the bytes after the Gaussians."""
_EXTENSION = struct.Struct("<II")
"""Type and length in bytes of an extension, which comes before its content."""
COORDINATE_SYSTEM = 0xADBE0003
"""Type of the extension `SPZ_ADOBE_coordinate_system`, a number that names the axes."""
AXES = (
    *("LDB", "RDB", "LUB", "RUB", "LDF", "RDF", "LUF", "RUF"),
    *("LFD", "RFD", "LFU", "RFU", "LBD", "RBD", "LBU", "RBU"),
)
"""Axes by their numbers, from 1: directions of x, y and z (left, right, down, up, back, front)."""
_RDF = AXES.index("RDF") + 1
_IN_RDF = {
    "R": (1.0, 0.0, 0.0),
    "L": (-1.0, 0.0, 0.0),
    "D": (0.0, 1.0, 0.0),
    "U": (0.0, -1.0, 0.0),
    "F": (0.0, 0.0, 1.0),
    "B": (0.0, 0.0, -1.0),
}
"""Directions in OpenCV axes."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Content:
    """Content of a file.

    Attributes:
        version: 1 to 4.
        num_fraction_bits: Number of fraction bits of a position.
        flags: Flags of the header.
        planes: Bytes of the positions, opacities, colours, scales, rotations and harmonics of all Gaussians.
        extensions: Extensions, one after the other.
    """

    version: int
    num_fraction_bits: int
    flags: int
    planes: list[NDArray[np.uint8]]
    extensions: bytes


def write_spz(
    file: BinaryIO, gaussians: Gaussians, camera: Camera | None, frame: Frame = SPZ_FRAME, *, version: int = 3
) -> None:
    """Write a .spz, which cannot store the camera and its position.

    Positions are exact to 0.12 mm up to 2 km, and to fewer bits beyond; logarithms of scales to 1 / 32 within the range
    from e^-10 m to e^5.9 m; colours to 0.3 %, opacities to 0.2 %, components of quaternions to 0.0007 (in version 2, x,
    y and z to 0.004); coefficients of spherical harmonics to 1 / 32 in degree 1 and 1 / 16 above.

    Args:
        file: Binary file to write to.
        gaussians: N Gaussians on any device.
        camera: Ignored.
        frame: Frame of the Gaussians. Axes other than OpenGL's, which readers assume, are named by an extension, but
            not in version 2.
        version: 2, 3 or 4.

    Raises:
        PredictionError: A value is not finite.
        OutputError: A position is farther than 8388 km from the origin.
        NotInstalledError: Version 4 is asked for, and the package zstandard is not installed.
    """
    del camera
    block = torch.from_numpy(vertex_block(gaussians))
    num_fraction_bits = _fraction_bits(block[:, 0:3])
    planes: list[NDArray[Any]] = [
        _pack_positions(block[:, 0:3], num_fraction_bits),
        _to_bytes(block[:, 6:7].sigmoid().mul_(255.0)),
        _to_bytes(block[:, 3:6].mul(COLOR_SCALE).add_(0.5).mul_(255.0)),
        _to_bytes(block[:, 7:10].add(LOG_SCALE_OFFSET).mul_(LOG_SCALE_STEPS)),
        _pack_quaternions(block[:, 10:14]) if version >= 3 else _to_bytes(block[:, 11:14].mul(127.5).add_(127.5)),
        _pack_harmonics(gaussians),
    ]
    extensions = b""
    if frame.axes != SPZ_FRAME.axes and version >= _FIRST_WITH_EXTENSIONS:
        extensions = _EXTENSION.pack(COORDINATE_SYSTEM, 4) + struct.pack("<I", _RDF)
    flags = _HAS_EXTENSIONS if extensions else 0
    content = [plane.tobytes() for plane in planes if plane.size]  # Empty streams are omitted.
    about = (MAGIC, version, len(block), gaussians.degree, num_fraction_bits, flags)
    if version < 4:
        file.writelines(_gzip(b"".join([_HEADER.pack(*about, 0), *content, extensions])))
        return
    require_zstandard()
    import zstandard

    with ThreadPoolExecutor() as executor:
        streams = list(executor.map(lambda plane: zstandard.ZstdCompressor(_ZSTD_LEVEL).compress(plane), content))
    file.write(_NGSP_HEADER.pack(*about, len(streams), _NGSP_HEADER.size + len(extensions)) + extensions)
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


def _pack_harmonics(gaussians: Gaussians) -> NDArray[np.uint8]:
    """Return the codes of the spherical harmonics, (N, K, 3), with the lowest bits cleared."""
    if gaussians.harmonics is None:
        return np.empty(0, np.uint8)
    codes = gaussians.harmonics.cpu().mul(HARMONICS_STEPS).round_().add_(HARMONICS_STEPS)
    bits = torch.full((codes.shape[1], 1), _HARMONICS_BITS[1])
    bits[: NUM_BANDS[1]] = _HARMONICS_BITS[0]
    steps = torch.exp2(8.0 - bits)
    return _to_bytes(codes.div_(steps).add_(0.5).floor_().mul_(steps))


def read_spz(content: bytes) -> Splat:
    """Read a .spz of the versions 1 to 4.

    Args:
        content: The whole file; versions 1 to 3 may lack their compression.

    Returns:
        The Gaussians in the file's order, without camera. Their axes are those of the file if these are OpenGL's or
        OpenCV's, else OpenCV's.

    Raises:
        SplatError: The content is not a .spz, is broken or truncated, or has another version.
        NotInstalledError: The file has version 4, and the package zstandard is not installed.
    """
    if content.startswith(b"\x1f\x8b"):
        found = _read_gzip(content)
    elif len(content) >= _HEADER.size and _HEADER.unpack_from(content)[1] in _LEGACY_VERSIONS:
        found = _read_plain(content)
    else:
        found = _read_ngsp(content)
    positions, alphas, colors, scales, rotations, codes = found.planes
    if found.version == 1:
        means = torch.from_numpy(positions.view("<f2").astype(np.float32).reshape(-1, 3))
    else:
        # 24 bits in the upper three bytes of four: the sign bit is the same, the factor is 2^8.
        fixed = np.zeros((len(alphas), 3, 4), dtype=np.uint8)
        fixed[..., 1:] = positions.reshape(-1, 3, 3)
        means = torch.from_numpy(fixed.view("<i4")[..., 0].astype(np.float32)) / float(1 << found.num_fraction_bits + 8)
    shades = torch.from_numpy(colors.astype(np.float32).reshape(-1, 3)).div_(255.0).sub_(0.5).div_(COLOR_SCALE)
    log_scales = torch.from_numpy(scales.astype(np.float32).reshape(-1, 3)).div_(LOG_SCALE_STEPS)
    harmonics = None
    if len(codes):
        harmonics = torch.from_numpy(codes.astype(np.float32).reshape(len(alphas), -1, 3))
        harmonics.sub_(HARMONICS_STEPS).div_(HARMONICS_STEPS)
    gaussians = Gaussians(
        means=means,
        scales=log_scales.sub_(LOG_SCALE_OFFSET).exp_(),
        quaternions_wxyz=_unpack_quaternions(rotations, found.version),
        colors_linear=srgb_to_linear(shades.mul_(SH_C0).add_(0.5)),
        opacities=torch.from_numpy(alphas.astype(np.float32)).div_(255.0),
        harmonics=harmonics,
    )
    axes, notes = _read_extensions(found)
    frame = {"RUB": SPZ_FRAME, "RDF": PHOTOGRAPH_FRAME}.get(axes)
    if frame is None:
        gaussians = change_axes(gaussians, np.array([_IN_RDF[letter] for letter in axes]).T)
    return Splat(gaussians=gaussians, camera=None, frame=frame or PHOTOGRAPH_FRAME, notes=notes)


def _read_extensions(found: _Content) -> tuple[str, tuple[str, ...]]:
    """Return the axes, one of `AXES`, and notes on what was left out.

    Raises:
        SplatError: An extension is truncated, or names axes that do not exist.
    """
    axes, notes = "RUB", []
    unknown_flags = found.flags & ~_KNOWN_FLAGS
    if unknown_flags:
        notes.append(
            f"the .spz has flags that are unknown here ({unknown_flags:#04x}): its values may mean something else, as "
            "the halved opacities of Spark's levels of detail do (0x80)"
        )
    rest = found.extensions if found.flags & _HAS_EXTENSIONS else b""
    while rest:
        if len(rest) < _EXTENSION.size or len(rest) < _EXTENSION.size + _EXTENSION.unpack_from(rest)[1]:
            raise SplatError("an extension of the .spz is truncated: the file is broken")
        type_, size = _EXTENSION.unpack_from(rest)
        payload, rest = rest[_EXTENSION.size :][:size], rest[_EXTENSION.size + size :]
        if type_ != COORDINATE_SYSTEM:
            notes.append(f"the .spz has an extension that is unknown here ({type_:#010x}): it is left out")
            continue
        number = int.from_bytes(payload, "little")
        if number > len(AXES):
            raise SplatError(f"the .spz has axes of the number {number}, the last one is {len(AXES)}: it is broken")
        # 0 stands for unspecified axes.
        axes = AXES[number - 1] if number else "RUB"
    return axes, tuple(notes)


def _plane_sizes(version: int, count: int, degree: int) -> list[int]:
    """Return the sizes in bytes of positions, opacities, colours, scales, rotations and harmonics."""
    if count > MAX_GAUSSIANS:
        raise SplatError(f"the .spz promises {count} Gaussians, the limit is {MAX_GAUSSIANS}: split it")
    if degree > MAX_DEGREE:
        raise SplatError(
            f"the .spz has spherical harmonics of degree {degree}, the limit is {MAX_DEGREE}: it is broken"
        )
    # Version 1 has half floats for positions; versions 1 and 2 have one byte for each of x y z of a quaternion.
    per_gaussian = (6 if version == 1 else 9, 1, 3, 3, 4 if version >= 3 else 3, 3 * NUM_BANDS[degree])
    return [count * size for size in per_gaussian]


def _read_gzip(content: bytes) -> _Content:
    """Read versions 1 to 3."""
    try:
        # 31 is the largest window, 15, and 16 for a gzip header.
        inflate = zlib.decompressobj(31)
        head = inflate.decompress(content, _HEADER.size)
        # A header can promise any count, so it is compared with the bytes of the file before anything is allocated.
        found = _read_legacy(
            head,
            lambda size: inflate.decompress(inflate.unconsumed_tail, size),
            max_bytes=_MAX_DEFLATE_RATIO * len(content),
        )
        # zlib compares the checksum when it reaches the end of the stream.
        if not inflate.eof:
            raise SplatError("the .spz does not end where its content does: it is truncated or broken")
    except zlib.error as error:
        raise SplatError(f"the .spz cannot be decompressed: {reason_of(error)}: it is broken") from error
    return found


def _read_plain(content: bytes) -> _Content:
    """Read versions 1 to 3 without their compression, as some tools write them."""
    return _read_legacy(content[: _HEADER.size], io.BytesIO(content[_HEADER.size :]).read, max_bytes=len(content))


def _read_legacy(head: bytes, read: Callable[[int], bytes], *, max_bytes: int) -> _Content:
    """Read versions 1 to 3.

    Args:
        head: The header.
        read: Returns at most this many of the bytes after it, from one call to the next.
        max_bytes: Maximum number of bytes that may come after the header.
    """
    if len(head) < _HEADER.size:
        raise SplatError("the .spz ends within its header: it is truncated")
    magic, version, count, degree, num_fraction_bits, flags, _ = _HEADER.unpack(head)
    if magic != MAGIC:
        raise SplatError("the file is gzip, but not a .spz inside")
    if version not in _LEGACY_VERSIONS:
        raise SplatError(f"the .spz has version {version}: 1 to 4 can be read")
    sizes = _plane_sizes(version, count, degree)
    if sum(sizes) > max_bytes:
        raise SplatError(f"the .spz promises {count} Gaussians in {max_bytes} bytes: it is broken or truncated")
    body = _read_at_most(read, sum(sizes))
    return _Content(
        version=version,
        num_fraction_bits=num_fraction_bits,
        flags=flags,
        planes=_split(body, sizes),
        extensions=_read_at_most(read, _MAX_EXTENSION_BYTES),
    )


def _read_ngsp(content: bytes) -> _Content:
    """Read version 4."""
    if len(content) < _NGSP_HEADER.size:
        raise SplatError("the .spz ends within its header: it is truncated")
    _, version, count, degree, num_fraction_bits, flags, num_streams, toc = _NGSP_HEADER.unpack_from(content)
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
    for index, size in enumerate(wanted):
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
    return _Content(
        version=version,
        num_fraction_bits=num_fraction_bits,
        flags=flags,
        planes=_split(b"".join(body), sizes),
        extensions=content[_NGSP_HEADER.size : toc],
    )


def _read_at_most(read: Callable[[int], bytes], size: int) -> bytes:
    """Read up to `size` bytes piece by piece: memory grows with the bytes that exist, not with the promise."""
    pieces, missing = [], size
    while missing and (piece := read(min(missing, _PIECE))):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def _split(body: bytes, sizes: list[int]) -> list[NDArray[np.uint8]]:
    """Split the body into its planes."""
    if len(body) < sum(sizes):
        raise SplatError(f"the .spz has {len(body)} bytes of {sum(sizes)}: it is truncated")
    ends = np.cumsum(sizes).tolist()
    whole = np.frombuffer(body, dtype=np.uint8)
    return [whole[end - size : end] for end, size in zip(ends, sizes, strict=True)]


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

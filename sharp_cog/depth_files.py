"""Bytes of a depth map in any of the formats that tools write, numbers out; `sharp_cog.depth` knows what they mean."""

from __future__ import annotations

import importlib.util
import io
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import PngImagePlugin, TiffImagePlugin

from sharp_cog.atomic import cannot_write
from sharp_cog.errors import DepthError, NotInstalledError
from sharp_cog.scratch import ScratchFolder

Values = NDArray[np.float32]

MAX_PIXELS = 100_000_000
FORMATS = "give a .npy, .npz, 16-bit PNG, float TIFF, .exr or .pfm"
METRIC_FIELD = "depth_m"
"""The field's name by which a .npy says that it holds metres."""

_NPY_MAGIC, _PNG_MAGIC, _EXR_MAGIC = b"\x93NUMPY", b"\x89PNG\r\n\x1a\n", b"\x76\x2f\x31\x01"
_ZIP_MAGIC, _TIFF_MAGICS, _PFM_MAGICS = b"PK\x03\x04", (b"II*\0", b"MM\0*"), (b"Pf", b"PF")
# What numpy's header parser raises on broken text: it documents the first, fuzzing found the others.
_NPY_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    SyntaxError,
    EOFError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    tokenize.TokenError,
    UserWarning,  # That an array was saved by Python 2, where warnings are made errors.
)
_PNG_ERRORS = (OSError, SyntaxError, ValueError, LookupError, EOFError, MemoryError, struct.error, zlib.error)
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True, kw_only=True, slots=True)
class RawDepth:
    """What a file holds.

    Attributes:
        values: (height, width) float32, as they are in the file; a PNG's in metres.
        is_metric: Whether the file itself says that they are metres.
    """

    values: Values
    is_metric: bool = False


def read(depth_bytes: bytes) -> RawDepth:
    """Reads a depth map, told by its content.

    Raises:
        DepthError: Not a depth map, broken, or too large.
        NotInstalledError: An .exr needs the extra `depth`.
    """
    if not depth_bytes:
        raise DepthError(f"the depth map has zero bytes: {FORMATS}")
    for magic, reader in _READERS:
        if depth_bytes.startswith(magic):
            raw = reader(depth_bytes)
            height, width = raw.values.shape
            _check_size(width, height)
            return raw
    raise DepthError(f"the bytes are not a depth map: {FORMATS}")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DepthError(f"the depth map is {width}x{height}, the limit is {MAX_PIXELS // 10**6} MP: downscale it")


def _read_npy(depth_bytes: bytes) -> RawDepth:
    """A .npy array; its header is checked against the bytes before anything is allocated."""
    file = io.BytesIO(depth_bytes)
    try:
        version = np.lib.format.read_magic(file)
        shape, is_fortran, dtype = _NPY_HEADERS[version](file)
    except _NPY_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise DepthError(f"the .npy header is broken ({reason}): save it with numpy.save") from error
    is_metric = dtype.names == (METRIC_FIELD,)
    if is_metric:
        dtype = dtype[METRIC_FIELD]
    if dtype.kind not in "fiu":
        raise DepthError(f"the .npy array holds {dtype}, not numbers: save floats or integers")
    sides = [side for side in shape if side != 1]
    if len(sides) != 2 or min(sides) < 1:
        raise DepthError(f"the .npy array has shape {shape}: give one map of height x width")
    offset, num_values = file.tell(), sides[0] * sides[1]
    if len(depth_bytes) - offset != num_values * dtype.itemsize:
        raise DepthError(
            f"the .npy header promises {num_values * dtype.itemsize} bytes for shape {shape}, "
            f"and {len(depth_bytes) - offset} follow: the file is truncated or broken"
        )
    values = np.frombuffer(depth_bytes, dtype=dtype, offset=offset)
    with np.errstate(over="ignore"):  # A float64 beyond float32 becomes infinite, which is unknown.
        values = values.reshape(sides, order="F" if is_fortran else "C").astype(np.float32)
    return RawDepth(values=values, is_metric=is_metric)


def _read_png(depth_bytes: bytes) -> RawDepth:
    """Metres from a 16-bit grey PNG in millimetres."""
    # The plugin is called directly: `Image.open` would warn about large ones by a global limit that is not ours.
    try:
        image = PngImagePlugin.PngImageFile(io.BytesIO(depth_bytes))
        is_16_bit_grey = image.mode.startswith("I;16")
        if is_16_bit_grey and image.width * image.height <= MAX_PIXELS:
            image.load()
    except _PNG_ERRORS as error:
        raise DepthError(f"the depth map is broken or truncated ({error}): export it again") from error
    if not is_16_bit_grey:
        raise DepthError(f"the depth map is a PNG of mode {image.mode}, not of 16-bit grey: {FORMATS}")
    _check_size(image.width, image.height)
    return RawDepth(values=np.asarray(image).astype(np.float32) / np.float32(1000), is_metric=True)


def _read_npz(depth_bytes: bytes) -> RawDepth:
    """The one array of an .npz."""
    try:
        with zipfile.ZipFile(io.BytesIO(depth_bytes)) as archive:
            (member,) = archive.infolist()
            if member.file_size > 8 * MAX_PIXELS + (1 << 16):
                raise DepthError(f"the .npz promises {member.file_size} bytes: the limit is {MAX_PIXELS // 10**6} MP")
            with archive.open(member) as file:
                # Read only what is promised: what the member says of its size may be a lie.
                content = file.read(member.file_size)
    except ValueError as error:
        raise DepthError("the .npz holds more or less than one array: save one, as numpy.savez(name, depth)") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise DepthError(f"the .npz is broken or truncated ({error}): save it again") from error
    if not content.startswith(_NPY_MAGIC):
        raise DepthError(f"the .npz holds {member.filename!r}, which is not an array: save it by numpy.savez")
    return _read_npy(content)


def _read_tiff(depth_bytes: bytes) -> RawDepth:
    """A TIFF of one channel: floats, or 16-bit integers."""
    try:
        image = TiffImagePlugin.TiffImageFile(io.BytesIO(depth_bytes))
        mode = image.mode
        if mode in ("F", "I;16", "I;16B", "I") and image.width * image.height <= MAX_PIXELS:
            image.load()
    except _PNG_ERRORS as error:
        raise DepthError(f"the depth map is broken or truncated ({error}): export it again") from error
    _check_size(image.width, image.height)
    if mode not in ("F", "I;16", "I;16B", "I"):
        raise DepthError(f"the depth map is a TIFF of mode {mode}, not of one channel of floats: {FORMATS}")
    return RawDepth(values=np.asarray(image).astype(np.float32))


def _read_pfm(depth_bytes: bytes) -> RawDepth:
    """A portable float map: `Pf`, width and height, the byte order by a scale's sign; rows from the bottom up."""
    words, position = list[bytes](), 0
    while len(words) < 4:  # White space parts the words, and one such byte ends the last of them.
        end = position
        while end < len(depth_bytes) and end < 200 and depth_bytes[end : end + 1].strip():
            end += 1
        if end >= min(len(depth_bytes), 200):
            raise DepthError("the .pfm header is broken: it should say Pf, the width, the height and the scale")
        if end > position:
            words.append(depth_bytes[position:end])
        position = end + 1
    try:
        kind, width, height, scale = words[0], int(words[1]), int(words[2]), float(words[3])
    except ValueError as error:
        raise DepthError(f"the .pfm header is broken ({error}): export it again") from error
    if kind != b"Pf":
        raise DepthError("the .pfm has three channels: it is a picture, not a depth map")
    if width < 1 or height < 1 or scale == 0 or len(depth_bytes) - position != 4 * width * height:
        raise DepthError(
            f"the .pfm promises {width}x{height} floats and {len(depth_bytes) - position} bytes follow: it is "
            "truncated or broken"
        )
    values = np.frombuffer(depth_bytes, "<f4" if scale < 0 else ">f4", offset=position)
    return RawDepth(values=values.reshape(height, width)[::-1].astype(np.float32))


def _read_exr(depth_bytes: bytes) -> RawDepth:
    """An OpenEXR of one channel."""
    if importlib.util.find_spec("OpenEXR") is None:
        raise NotInstalledError("reading .exr needs the extra 'depth': run .venv/bin/pip install -e '.[depth]'")
    import OpenEXR

    with ScratchFolder() as folder:  # The library reads names alone.
        path = folder / "depth.exr"
        try:
            path.write_bytes(depth_bytes)
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            with OpenEXR.File(str(path), header_only=True) as header:
                low, high = header.header()["dataWindow"]
            _check_size(int(high[0]) - int(low[0]) + 1, int(high[1]) - int(low[1]) + 1)
            with OpenEXR.File(str(path)) as file:
                channels = {name: np.array(channel.pixels) for name, channel in file.channels().items()}
        except (RuntimeError, ValueError, KeyError, TypeError, MemoryError) as error:
            raise DepthError(f"the .exr is broken or truncated ({error}): export it again") from error
    planes = [plane for plane in channels.values() if plane.ndim == 2]
    if len(channels) != 1 or len(planes) != 1:
        raise DepthError(f"the .exr has the channels {', '.join(channels)}: give one of depth alone")
    return RawDepth(values=planes[0].astype(np.float32))


_READERS: tuple[tuple[bytes | tuple[bytes, ...], Callable[[bytes], RawDepth]], ...] = (
    (_NPY_MAGIC, _read_npy),
    (_PNG_MAGIC, _read_png),
    (_ZIP_MAGIC, _read_npz),
    (_TIFF_MAGICS, _read_tiff),
    (_PFM_MAGICS, _read_pfm),
    (_EXR_MAGIC, _read_exr),
)

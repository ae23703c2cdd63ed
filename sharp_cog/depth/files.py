"""Depth files: reads all formats that tools write, and writes one. `sharp_cog.depth.maps` interprets the numbers."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import PngImagePlugin, TiffImagePlugin

from sharp_cog.config.options import DEPTH_FORMATS
from sharp_cog.errors import DepthError, NotInstalledError
from sharp_cog.files.atomic import open_atomically
from sharp_cog.imaging.limits import MeteredFile, prepare_to_load
from sharp_cog.imaging.pixels import DECODER_ERRORS
from sharp_cog.text import plain, quoted, read_json, reason_of

_LOG = logging.getLogger(__name__)

Values = NDArray[np.float32]

MAX_PIXELS = 100_000_000
"""Maximum number of pixels of a depth map."""

FORMATS = "give a .npy, .npz, 16-bit PNG, float TIFF, .exr or .pfm"
"""Advice that ends messages about files that cannot be read."""

SUFFIXES = (".npy", ".npz", ".png", ".tif", ".tiff", ".exr", ".pfm")
"""Suffixes under which a depth map is searched in a folder, in this order."""

METRIC_FIELD = "depth_m"
"""Name of the field in structured .npy files of metres, which version 0.1 wrote."""

_NPY_MAGIC, _PNG_MAGIC, _EXR_MAGIC = b"\x93NUMPY", b"\x89PNG\r\n\x1a\n", b"\x76\x2f\x31\x01"
_ZIP_MAGIC, _TIFF_MAGICS, _PFM_MAGICS = b"PK\x03\x04", (b"II*\0", b"MM\0*"), (b"Pf", b"PF")
# Exceptions of numpy's header parser on broken text. It documents the first, fuzzing found the others.
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
    UserWarning,  # numpy warns of files that Python 2 has written, and a program may turn warnings into errors.
)

_MAX_NPY_HEADER_BYTES = 1 << 20
"""Number of bytes in which the header of a .npy must end."""

_PIECE_BYTES = 1 << 20
"""Number of bytes that are read from an .npz at once."""

_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True, kw_only=True, slots=True)
class RawDepth:
    """Content of a depth file.

    Attributes:
        values: (height, width) float32, the numbers of the file; those of a PNG are converted to metres.
        is_metric: Whether the file itself says that its numbers are metres.
    """

    values: Values
    is_metric: bool = False


def read(depth_bytes: bytes) -> RawDepth:
    """Read a depth file, whose format is recognised by its content.

    Raises:
        DepthError: The bytes are not a depth map, or it is broken or too large.
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


def write_metric_npy(path: Path, depth_m: Values, **about: object) -> None:
    """Write a depth map as a plain float32 .npy, and beside it `<name>.npy.json`, which says that it holds metres.

    The numbers alone could be anything: without the description, a map of a small room would be taken for a relative
    one, since all its values lie between 0 and 1.5.

    Args:
        path: Path of the .npy.
        depth_m: (height, width), metres.
        about: More facts for the description, such as `estimator` and `focal_length_px`; None is left out.

    Raises:
        OutputError: A file cannot be written.
    """
    height, width = depth_m.shape
    facts = {"format": "metric", "unit": "m", "width": width, "height": height, **about}
    description = json.dumps({name: value for name, value in facts.items() if value is not None}, indent=1)
    with open_atomically(_description_path(path)) as file:
        file.write(description.encode())
    with open_atomically(path) as file:
        np.save(file, np.ascontiguousarray(depth_m, dtype="<f4"))


def described_format(path: Path) -> str | None:
    """Return the format, one of `DEPTH_FORMATS`, that the description beside a .npy names.

    Returns:
        None for other files, if there is no description, or, with a warning, if it cannot be read.
    """
    # Other files have no description of ours, but `photo.png.json` may well lie there: photo services export such.
    if path.suffix.lower() != ".npy":
        return None
    described = _description_path(path)
    try:
        facts = read_json(described.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _LOG.warning("%s cannot be read and is ignored: %s", described, reason_of(error))
        return None
    named = facts.get("format") if isinstance(facts, dict) else None
    if named in DEPTH_FORMATS and named != "auto":
        return str(named)
    _LOG.warning(
        "%s names the format %s and is ignored: name one of %s", described, quoted(named), ", ".join(DEPTH_FORMATS[1:])
    )
    return None


def _description_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DepthError(f"the depth map is {width}x{height}, the limit is {MAX_PIXELS // 10**6} MP: downscale it")


def _read_npy(depth_bytes: bytes) -> RawDepth:
    """Read a .npy."""
    return _read_array(io.BytesIO(depth_bytes), len(depth_bytes))


def _read_array(file: IO[bytes], num_bytes: int) -> RawDepth:
    """Read a .npy from a stream of `num_bytes` bytes, piece by piece.

    The shape in the header may be a lie, so it is compared with `num_bytes` before memory is allocated. numpy's reader
    would allocate first.
    """
    head = file.read(_MAX_NPY_HEADER_BYTES)
    header = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(header)
        shape, is_fortran, dtype = _NPY_HEADERS[version](header)
    except _NPY_ERRORS as error:
        raise DepthError(f"the .npy header is broken ({reason_of(error)}): save it with numpy.save") from error
    is_metric = dtype.names == (METRIC_FIELD,)
    if is_metric:
        dtype = dtype[METRIC_FIELD]
    if dtype.kind not in "fiu":
        raise DepthError(f"the .npy array holds {plain(dtype)}, not numbers: save floats or integers")
    sides = [side for side in shape if side != 1]
    # No map has sides of 32 bits, and larger numbers would make the messages below too long.
    if len(sides) != 2 or min(sides) < 1 or max(sides) >= 1 << 31:
        raise DepthError(f"the .npy array has shape {plain(shape)}: give one map of height x width")
    offset, num_values = header.tell(), sides[0] * sides[1]
    if num_bytes - offset != num_values * dtype.itemsize:
        raise DepthError(
            f"the .npy header promises {num_values * dtype.itemsize} bytes for shape {plain(shape)}, "
            f"and {num_bytes - offset} follow: the file is truncated or broken"
        )
    _check_size(sides[1], sides[0])
    values, start, rest = np.empty(num_values, dtype=np.float32), 0, head[offset:]
    while start < num_values:
        # A piece may end within a value; its last bytes are put before the next piece.
        content = rest + file.read(_PIECE_BYTES)
        part = np.frombuffer(content, dtype=dtype, count=len(content) // dtype.itemsize)
        if not len(part):
            raise DepthError("the .npy array ends before its header says so: the file is truncated or broken")
        with np.errstate(over="ignore"):  # A float64 too large for float32 becomes infinite: unknown.
            values[start : start + len(part)] = part
        start, rest = start + len(part), content[part.nbytes :]
    return RawDepth(values=values.reshape(sides, order="F" if is_fortran else "C"), is_metric=is_metric)


def _read_png(depth_bytes: bytes) -> RawDepth:
    """Read a PNG of 16-bit grey, which holds millimetres."""
    # The plugin is called directly: `Image.open` would warn of large images by a limit that is global to the process.
    try:
        image = PngImagePlugin.PngImageFile(MeteredFile(depth_bytes))
        is_16_bit_grey = image.mode.startswith("I;16")
        if is_16_bit_grey and image.width * image.height <= MAX_PIXELS:
            image.load()
    except DECODER_ERRORS as error:
        raise DepthError(f"the depth map is broken or truncated ({reason_of(error)}): export it again") from error
    if not is_16_bit_grey:
        raise DepthError(f"the depth map is a PNG of mode {image.mode}, not of 16-bit grey: {FORMATS}")
    _check_size(image.width, image.height)
    return RawDepth(values=np.asarray(image).astype(np.float32) / np.float32(1000), is_metric=True)


def _read_npz(depth_bytes: bytes) -> RawDepth:
    """Read the only array of an .npz."""
    try:
        with zipfile.ZipFile(io.BytesIO(depth_bytes)) as archive:
            members = archive.infolist()
            if len(members) != 1:
                raise DepthError(f"the .npz holds {len(members)} arrays: save one, as numpy.savez(name, depth)")
            with archive.open(members[0]) as file:
                if file.read(len(_NPY_MAGIC)) != _NPY_MAGIC:
                    raise DepthError(
                        f"the .npz holds {plain(members[0].filename)!r}, which is not an array: save it by numpy.savez"
                    )
                file.seek(0)
                return _read_array(file, members[0].file_size)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise DepthError(f"the .npz is broken or truncated ({reason_of(error)}): save it again") from error


def _read_tiff(depth_bytes: bytes) -> RawDepth:
    """Read a TIFF with one channel of floats or integers."""
    try:
        image = TiffImagePlugin.TiffImageFile(MeteredFile(depth_bytes))
        mode = image.mode
        if mode in ("F", "I;16", "I;16B", "I") and image.width * image.height <= MAX_PIXELS:
            prepare_to_load(image)
            image.load()
    except DECODER_ERRORS as error:
        raise DepthError(f"the depth map is broken or truncated ({reason_of(error)}): export it again") from error
    _check_size(image.width, image.height)
    if mode not in ("F", "I;16", "I;16B", "I"):
        raise DepthError(f"the depth map is a TIFF of mode {mode}, not of one channel of floats: {FORMATS}")
    return RawDepth(values=np.asarray(image).astype(np.float32))


def _read_pfm(depth_bytes: bytes) -> RawDepth:
    """Read a portable float map: `Pf`, width, height, a scale whose sign is the byte order, rows from the bottom up."""
    words, position = list[bytes](), 0
    while len(words) < 4:  # White space separates the words, and one byte of it ends the last word.
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
        raise DepthError(f"the .pfm header is broken ({reason_of(error)}): export it again") from error
    if kind != b"Pf":
        raise DepthError("the .pfm has three channels: it is an image, not a depth map")
    if width < 1 or height < 1 or scale == 0 or len(depth_bytes) - position != 4 * width * height:
        raise DepthError(
            f"the .pfm promises {width}x{height} floats and {len(depth_bytes) - position} bytes follow: it is "
            "truncated or broken"
        )
    values = np.frombuffer(depth_bytes, "<f4" if scale < 0 else ">f4", offset=position)
    return RawDepth(values=values.reshape(height, width)[::-1].astype(np.float32))


def _read_exr(depth_bytes: bytes) -> RawDepth:
    """Read an OpenEXR of one channel."""
    if importlib.util.find_spec("OpenEXR") is None:
        raise NotInstalledError("reading .exr needs the extra 'depth': run .venv/bin/pip install -e '.[depth]'")
    import OpenEXR

    try:
        with OpenEXR.File(io.BytesIO(depth_bytes), header_only=True) as file:
            kind, (low, high) = file.header()["type"], file.header()["dataWindow"]
            names = [channel.name for part in file.parts for channel in part.header["channels"]]
    except (RuntimeError, ValueError, KeyError, TypeError, MemoryError) as error:
        raise DepthError(f"the .exr is broken or truncated ({reason_of(error)}): export it again") from error
    # The size is checked before any pixel is read, since OpenEXR allocates memory for all that the header promises.
    _check_size(int(high[0]) - int(low[0]) + 1, int(high[1]) - int(low[1]) + 1)
    if len(names) != 1 or kind not in (OpenEXR.scanlineimage, OpenEXR.tiledimage):
        raise DepthError(f"the .exr has the channels {plain(', '.join(names))}: give one of depth alone, and not deep")
    try:
        with OpenEXR.File(io.BytesIO(depth_bytes)) as file:
            plane = np.array(file.channels()[names[0]].pixels)
    except (RuntimeError, ValueError, KeyError, TypeError, MemoryError) as error:
        raise DepthError(f"the .exr is broken or truncated ({reason_of(error)}): export it again") from error
    return RawDepth(values=plane.astype(np.float32))


_READERS: tuple[tuple[bytes | tuple[bytes, ...], Callable[[bytes], RawDepth]], ...] = (
    (_NPY_MAGIC, _read_npy),
    (_PNG_MAGIC, _read_png),
    (_ZIP_MAGIC, _read_npz),
    (_TIFF_MAGICS, _read_tiff),
    (_PFM_MAGICS, _read_pfm),
    (_EXR_MAGIC, _read_exr),
)

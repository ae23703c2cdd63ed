"""Depth files: reads all formats that tools write, and writes one. `sharp_cog.depth.maps` interprets the numbers."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import math
import re
import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, PngImagePlugin, TiffImagePlugin

from sharp_cog.config.options import DEPTH_FORMATS, FOCAL_LENGTH_PX_RANGE
from sharp_cog.depth import evidence
from sharp_cog.depth.evidence import Statement
from sharp_cog.errors import DepthError, NotInstalledError
from sharp_cog.files.atomic import open_atomically
from sharp_cog.imaging.limits import MeteredFile, prepare_to_load
from sharp_cog.imaging.pixels import DECODER_ERRORS
from sharp_cog.text import plain, quoted, read_json, read_number, reason_of

_LOG = logging.getLogger(__name__)

Values = NDArray[np.float32]

MAX_PIXELS = 100_000_000
"""Maximum number of pixels of a depth map."""

FORMATS = "give a .npy, .npz, 16-bit PNG, float TIFF, .exr or .pfm"
"""Advice that ends messages about files that cannot be read."""

SUFFIXES = (".npy", ".npz", ".png", ".tif", ".tiff", ".exr", ".pfm", ".geometric.bin", ".photometric.bin")
"""Suffixes under which a depth map is searched in a folder, in this order."""

METRIC_FIELD = "depth_m"
"""Name of the field in structured .npy files of metres, which version 0.1 wrote."""

_NPY_MAGIC, _PNG_MAGIC, _EXR_MAGIC = b"\x93NUMPY", b"\x89PNG\r\n\x1a\n", b"\x76\x2f\x31\x01"
_COLMAP_HEADER = re.compile(rb"(\d{1,6})&(\d{1,6})&(\d{1,2})&")
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

_PNG_BITS_AT = 24
"""Place of the bits of a channel in the header of a PNG."""

_TIFF_DESCRIPTION, _GDAL_METADATA, _GDAL_NODATA = 270, 42112, 42113
"""Tags of TIFF whose texts may name a unit, and the value that GDAL writes for unknown pixels."""

_MIDDLEBURY_SCALE = 1 / 255
"""Scale in the header of .pfm files of disparity from the Middlebury benchmark."""

_STRIP_PX = 1 << 20
"""Number of pixels that are copied out of an image at once."""

_PIECE_BYTES = 1 << 20
"""Number of bytes that are read from an .npz at once."""

_MAX_NUMBER_BYTES = 4096
"""Maximum size of an array in an .npz that holds one number."""

_FOCAL_LENGTHS = ("focallength_px", "focal_length_px", "f_px")
"""Names of arrays with a focal length in pixels; the first is Depth Pro's."""

_TIFF_MODES = ("F", "I;16", "I;16B", "I", "L")
"""Modes of a TIFF with one channel of numbers."""

_MAX_EXR_VALUES = 4 * MAX_PIXELS
"""Maximum number of values in all channels of an .exr, which OpenEXR reads at once."""

_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True, kw_only=True, slots=True)
class RawDepth:
    """Content of a depth file.

    Attributes:
        values: (height, width) float32, the numbers of the file as they are.
        stated: What the file itself says about its numbers; None if it says nothing.
        is_integer: Whether the file holds integers.
        focal_length_px: Focal length in pixels of the map that the file gives beside it; None if it gives none.
    """

    values: Values
    stated: Statement | None = None
    is_integer: bool = False
    focal_length_px: float | None = None


def read(depth_bytes: bytes) -> RawDepth:
    """Read a depth file, whose format is recognised by its content.

    Raises:
        DepthError: The bytes are not a depth map, or it is broken or too large.
        NotInstalledError: An .exr needs the extra `depth`.
    """
    if not depth_bytes:
        raise DepthError(f"the depth map has zero bytes: {FORMATS}")
    if _COLMAP_HEADER.match(depth_bytes):
        return _read_colmap(depth_bytes)
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
    stated = None
    if dtype.names == (METRIC_FIELD,):
        stated, dtype = evidence.from_name(METRIC_FIELD, "field"), dtype[METRIC_FIELD]
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
        with np.errstate(over="ignore"):  # A float64 too large for float32 becomes infinite: far.
            values[start : start + len(part)] = part
        start, rest = start + len(part), content[part.nbytes :]
    return RawDepth(
        values=values.reshape(sides, order="F" if is_fortran else "C"), stated=stated, is_integer=dtype.kind in "iu"
    )


def _read_png(depth_bytes: bytes) -> RawDepth:
    """Read a PNG of 16-bit or 8-bit grey."""
    # The plugin is called directly: `Image.open` would warn of large images by a limit that is global to the process.
    try:
        image = PngImagePlugin.PngImageFile(MeteredFile(depth_bytes))
        is_grey = image.mode.startswith("I;16") or image.mode == "L"
        # Pillow cuts colours of 16 bits down to 8.
        is_small = depth_bytes[_PNG_BITS_AT : _PNG_BITS_AT + 1] == b"\x08"
        is_readable = is_grey or (image.mode in ("RGB", "RGBA") and is_small)
        if is_readable and image.width * image.height <= MAX_PIXELS:
            image.load()
    except DECODER_ERRORS as error:
        raise DepthError(f"the depth map is broken or truncated ({reason_of(error)}): export it again") from error
    if not is_readable:
        raise DepthError(f"the depth map is a PNG of mode {image.mode}, not of 16-bit grey: {FORMATS}")
    _check_size(image.width, image.height)
    grey = image if is_grey else _equal_channels(image)
    text = "\n".join(f"{key}: {value}" for key, value in image.text.items())
    return RawDepth(values=_numbers_of(grey), stated=evidence.from_text(text), is_integer=True)


def _equal_channels(image: Image.Image) -> Image.Image:
    """Return the grey of an image in colours whose channels are the same.

    Raises:
        DepthError: They are not.
    """
    red, green, blue = image.convert("RGB").split()
    if ImageChops.difference(red, green).getbbox() or ImageChops.difference(red, blue).getbbox():
        raise DepthError(f"the depth map is a PNG in colours, not of 16-bit grey: {FORMATS}")
    return red


def _numbers_of(image: Image.Image) -> Values:
    """Return the pixels of a grey image, copied in strips, since Pillow copies what NumPy reads twice."""
    values = np.empty((image.height, image.width), dtype=np.float32)
    num_rows = max(1, _STRIP_PX // image.width)
    for top in range(0, image.height, num_rows):
        bottom = min(top + num_rows, image.height)
        values[top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return values


def _read_npz(depth_bytes: bytes) -> RawDepth:
    """Read the depth map of an .npz, and the focal length in pixels if it lies beside it."""
    try:
        with zipfile.ZipFile(io.BytesIO(depth_bytes)) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            name = _depth_name(list(members))
            focal_length_px = next(
                (_read_number(archive, members[other]) for other in _FOCAL_LENGTHS if other in members), None
            )
            with archive.open(members[name]) as file:
                if file.read(len(_NPY_MAGIC)) != _NPY_MAGIC:
                    raise DepthError(
                        f"the .npz holds {plain(members[name].filename)!r}, which is not an array: save it by "
                        "numpy.savez"
                    )
                file.seek(0)
                raw = _read_array(file, members[name].file_size)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise DepthError(f"the .npz is broken or truncated ({reason_of(error)}): save it again") from error
    stated = raw.stated or evidence.from_name(name, "array")
    if stated is not None and stated.format == "metric" and focal_length_px is not None and not raw.is_integer:
        # Depth Pro writes both. Its depth needs no confirmation by the numbers.
        stated = replace(stated, reason="by the focal length beside it, as Depth Pro writes", is_certain=True)
    return replace(raw, stated=stated, focal_length_px=focal_length_px)


def _depth_name(names: list[str]) -> str:
    """Return the name of the array that holds the depth map: the only one, or the first that is named like one."""
    if len(names) == 1:
        return names[0]
    stated = {name: evidence.from_name(name, "array") for name in names}
    found = sorted(
        (name for name in names if stated[name] is not None),
        key=lambda name: (stated[name].format != "metric", not stated[name].is_certain),  # type: ignore[union-attr]
    )
    if not found:
        raise DepthError(
            f"the .npz holds {len(names)} arrays, and none is named depth: save it as numpy.savez(name, depth=depth)"
        )
    return found[0]


def _read_number(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> float | None:
    """Return the only number of an array; None for other content, and for one that is no focal length."""
    if member.file_size > _MAX_NUMBER_BYTES:
        return None
    try:
        number = np.load(io.BytesIO(archive.read(member)), allow_pickle=False)
        value = float(number.reshape(-1)[0]) if number.size == 1 else math.nan
    except _NPY_ERRORS:
        return None
    least, most = FOCAL_LENGTH_PX_RANGE
    return value if least <= value <= most else None


def _read_tiff(depth_bytes: bytes) -> RawDepth:
    """Read a TIFF with one channel of floats or integers."""
    try:
        image = TiffImagePlugin.TiffImageFile(MeteredFile(depth_bytes))
        mode = image.mode
        if mode in _TIFF_MODES and image.width * image.height <= MAX_PIXELS:
            prepare_to_load(image)
            image.load()
    except DECODER_ERRORS as error:
        raise DepthError(f"the depth map is broken or truncated ({reason_of(error)}): export it again") from error
    _check_size(image.width, image.height)
    if mode not in _TIFF_MODES:
        raise DepthError(f"the depth map is a TIFF of mode {mode}, not of one channel of floats: {FORMATS}")
    values, tags = _numbers_of(image), image.tag_v2
    text = "\n".join(str(tags[tag]) for tag in (_TIFF_DESCRIPTION, _GDAL_METADATA) if tag in tags)
    try:
        values[values == np.float32(str(tags.get(_GDAL_NODATA, "nan")).strip("\0 "))] = np.nan
    except ValueError:
        _LOG.warning("the value of unknown pixels in the TIFF is no number, and was ignored")
    return RawDepth(values=values, stated=evidence.from_text(text), is_integer=mode != "F")


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
        kind, width, height, scale = words[0], int(words[1]), int(words[2]), read_number(words[3].decode())
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
    stated = None
    if abs(abs(scale) / _MIDDLEBURY_SCALE - 1) < 1e-3:
        stated = Statement(format="inverse-relative", reason="by its scale of 1/255, as Middlebury writes disparity")
    return RawDepth(values=values.reshape(height, width)[::-1].astype(np.float32), stated=stated)


def _read_colmap(depth_bytes: bytes) -> RawDepth:
    """Read a dense depth map of COLMAP: width, height and channels as text, then float32, column by column.

    Source: `read_array` in COLMAP's scripts/python/read_write_dense.py; zero is unknown.
    """
    header = _COLMAP_HEADER.match(depth_bytes)
    assert header is not None
    width, height, num_channels = (int(number) for number in header.groups())
    if num_channels != 1 or not width or not height:
        raise DepthError(f"the COLMAP array has {num_channels} channels of {width}x{height}: give a map of depth")
    if len(depth_bytes) - header.end() != 4 * width * height:
        raise DepthError(
            f"the COLMAP array promises {width}x{height} floats and {len(depth_bytes) - header.end()} bytes follow: it "
            "is truncated or broken"
        )
    _check_size(width, height)
    # Stored with the columns as the fastest index, which is the order of rows in C.
    values = np.frombuffer(depth_bytes, "<f4", offset=header.end()).reshape(height, width)
    stated = Statement(format="metric", reason="as COLMAP writes, in the unit of its reconstruction", is_certain=True)
    return RawDepth(values=values.astype(np.float32), stated=stated)


def _read_exr(depth_bytes: bytes) -> RawDepth:
    """Read the channel of depth of an OpenEXR: its only one, the one that is named like depth, or equal R, G and B."""
    if importlib.util.find_spec("OpenEXR") is None:
        raise NotInstalledError("reading .exr needs the extra 'depth': run .venv/bin/pip install -e '.[depth]'")
    import OpenEXR

    try:
        with OpenEXR.File(io.BytesIO(depth_bytes), header_only=True) as file:
            kinds = {part.header["type"] for part in file.parts}
            names = [channel.name for part in file.parts for channel in part.header["channels"]]
            windows = [part.header["dataWindow"] for part in file.parts]
            headers = [entry for part in file.parts for entry in part.header.items()]
            texts = [(name, value) for name, value in headers if isinstance(value, str)]
    except (RuntimeError, ValueError, KeyError, TypeError, MemoryError) as error:
        raise DepthError(f"the .exr is broken or truncated ({reason_of(error)}): export it again") from error
    # The size is checked before any pixel is read, since OpenEXR allocates memory for all that the header promises.
    for low, high in windows:
        width, height = int(high[0]) - int(low[0]) + 1, int(high[1]) - int(low[1]) + 1
        _check_size(width, height)
        if width * height * len(names) > _MAX_EXR_VALUES:
            raise DepthError(f"the .exr has {len(names)} channels of {width}x{height}: save the depth alone")
    chosen = _depth_channel(names)
    is_unique = names.count(chosen) == 1 if chosen is not None else _is_grey(names)
    is_deep = not kinds <= {OpenEXR.scanlineimage, OpenEXR.tiledimage}
    if is_deep or not is_unique:
        raise DepthError(f"the .exr has the channels {plain(', '.join(names))}: give one of depth alone, and not deep")
    try:
        with OpenEXR.File(io.BytesIO(depth_bytes), separate_channels=True) as file:
            planes = {name: channel.pixels for part in file.parts for name, channel in part.channels.items()}
            plane = np.array(planes[chosen or _color_channels(names)[0]])
            if chosen is None and any((planes[name] != plane).any() for name in _color_channels(names)):
                raise DepthError("the .exr is an image in colours: give one with a channel of depth, such as Z")
    except (RuntimeError, ValueError, KeyError, TypeError, MemoryError) as error:
        raise DepthError(f"the .exr is broken or truncated ({reason_of(error)}): export it again") from error
    stated = None if chosen is None else evidence.from_name(chosen, "channel")
    if stated is not None and stated.format == "metric" and any(name.startswith("unreal") for name, _ in texts):
        reason = f"{stated.reason}, in centimetres, as Unreal Engine writes"
        stated = replace(stated, unit_m=0.01, reason=reason, is_certain=True)
    text = "\n".join(f"{name}: {value}" for name, value in texts)
    return RawDepth(
        values=plane.astype(np.float32),
        stated=evidence.stronger(stated, evidence.from_text(text)),
        is_integer=plane.dtype.kind in "iu",
    )


def _depth_channel(names: list[str]) -> str | None:
    """Return the channel that is named like depth, or the only one."""
    if len(names) == 1:
        return names[0]

    def is_of_vector(name: str) -> bool:
        # Positions and normals have the channels X, Y and Z of one layer.
        layer, _, channel = name.rpartition(".")
        return channel.upper() == "Z" and {f"{layer}.X".lstrip("."), f"{layer}.Y".lstrip(".")} <= set(names)

    found = [name for name in names if evidence.from_name(name, "channel") is not None and not is_of_vector(name)]
    return min(found, key=len) if found else None


def _color_channels(names: list[str]) -> list[str]:
    return [name for name in names if name.rpartition(".")[2].upper() in ("R", "G", "B")]


def _is_grey(names: list[str]) -> bool:
    """Report whether the channels are one set of R, G and B, perhaps with A, which may be equal."""
    ends = sorted(name.rpartition(".")[2].upper() for name in names)
    return ends in (["B", "G", "R"], ["A", "B", "G", "R"])


_READERS: tuple[tuple[bytes | tuple[bytes, ...], Callable[[bytes], RawDepth]], ...] = (
    (_NPY_MAGIC, _read_npy),
    (_PNG_MAGIC, _read_png),
    (_ZIP_MAGIC, _read_npz),
    (_TIFF_MAGICS, _read_tiff),
    (_PFM_MAGICS, _read_pfm),
    (_EXR_MAGIC, _read_exr),
)

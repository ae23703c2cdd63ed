"""The .ply container: its header, its elements, and the comments that say what the splat's coordinates are."""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

import sharp_cog
from sharp_cog.errors import OptionError, SplatError
from sharp_cog.formats.scene import Frame
from sharp_cog.geometry.camera import Camera
from sharp_cog.text import plain, reason_of

_MAX_HEADER_BYTES = 1 << 16
_MAX_COUNT_DIGITS = 18
"""What fits in 64 bits; no file comes near."""
_TYPES = {
    name: type_
    for type_, names in {
        "i1": ("char", "int8"),
        "u1": ("uchar", "uint8"),
        "i2": ("short", "int16"),
        "u2": ("ushort", "uint16"),
        "i4": ("int", "int32"),
        "u4": ("uint", "uint32"),
        "f4": ("float", "float32"),
        "f8": ("double", "float64"),
    }.items()
    for name in names
}
_ROWS_AT_ONCE = 1 << 14
_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}


@dataclass(frozen=True, kw_only=True, slots=True)
class Element:
    name: str
    count: int
    fields: list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    is_ascii: bool
    elements: list[Element]
    comments: list[str]
    num_bytes: int


def parse_header(content: bytes) -> Header:
    head = content[:_MAX_HEADER_BYTES]
    end = head.find(b"\nend_header")
    newline = head.find(b"\n", end + 1)
    if head[:3] != b"ply" or end < 0 or newline < 0:
        raise SplatError("the file is not a .ply: its header does not start with 'ply' and end with 'end_header'")
    format_name, comments, elements = "", [], list[Element]()
    for line in head[:end].decode("latin-1").split("\n")[1:]:  # Not splitlines, which breaks comments in UTF-8.
        match line.split():
            case ["format", name, _]:
                format_name = name
            case ["comment" | "obj_info", *_]:
                comments.append(line.partition(" ")[2].rstrip())
            case ["element", name, count] if count.isdecimal() and len(count) <= _MAX_COUNT_DIGITS:
                elements.append(Element(name=name, count=int(count), fields=[]))
            case ["property", type_, name] if type_ in _TYPES and elements:
                elements[-1].fields.append((name, _TYPES[type_]))
            case []:
                pass
            case _:
                raise SplatError(f"the .ply header has a line that cannot be read: {line[:80]!r}")
    if format_name not in _BYTE_ORDERS:
        raise SplatError(f"the .ply has the format {plain(format_name)!r}: use one of {', '.join(_BYTE_ORDERS)}")
    order = _BYTE_ORDERS[format_name]
    elements = [
        Element(
            name=element.name, count=element.count, fields=[(name, order + type_) for name, type_ in element.fields]
        )
        for element in elements
    ]
    return Header(is_ascii=format_name == "ascii", elements=elements, comments=comments, num_bytes=newline + 1)


def read_elements(content: bytes, header: Header) -> dict[str, NDArray[np.void]]:
    """Structured arrays by the element's name; counts are checked against the bytes before anything is allocated."""
    arrays: dict[str, NDArray[np.void]] = {}
    rows = _Rows(content, header) if header.is_ascii else None
    position = header.num_bytes
    for element in header.elements:
        name = plain(element.name)
        if element.name in arrays:
            raise SplatError(f"the .ply has the element {name!r} twice: it is broken")
        try:
            dtype = np.dtype(element.fields)
        except ValueError as error:
            raise SplatError(f"the .ply element {name!r} is broken: {reason_of(error)}") from error
        if rows is not None:
            arrays[element.name] = rows.take(element.count, dtype, name)
            continue
        needed = element.count * dtype.itemsize
        if needed > len(content) - position:
            raise SplatError(
                f"the .ply promises {element.count} of {name!r} ({needed} bytes) and has "
                f"{len(content) - position} bytes left: it is truncated"
            )
        # From no bytes, numpy makes no array.
        arrays[element.name] = (
            np.frombuffer(content, dtype=dtype, count=element.count, offset=position) if needed else np.empty(0, dtype)
        )
        position += needed
    return arrays


class _Rows:
    """The lines of an ASCII .ply, one after the other."""

    def __init__(self, content: bytes, header: Header) -> None:
        self._num_bytes = len(content) - header.num_bytes
        self._lines = io.BytesIO(content)
        self._lines.seek(header.num_bytes)

    def take(self, count: int, dtype: np.dtype[np.void], name: str) -> NDArray[np.void]:
        """The next rows as an array; `name` is what a message calls them."""
        fields = dtype.names or ()
        # A line has a byte at least, and a number has a digit and a separator behind it, unless it is the last.
        if count * max(1, 2 * len(fields)) > self._num_bytes + 1:
            raise SplatError(
                f"the .ply promises {count} of {name!r} and has {self._num_bytes} bytes of lines: it is truncated"
            )
        array = np.empty(count, dtype=dtype)
        for start in range(0, count, _ROWS_AT_ONCE):  # Words take ten times the memory of the text.
            num_rows = min(_ROWS_AT_ONCE, count - start)
            rows = [line.split(None, len(fields)) for line in islice(self._lines, num_rows)]
            try:
                values = np.array(rows, dtype=np.float64).reshape(num_rows, len(fields))
            except ValueError as error:
                raise SplatError(
                    f"the .ply element {name!r} has a line that is not {len(fields)} numbers, or too few lines: "
                    f"{reason_of(error)}"
                ) from error
            for index, field in enumerate(fields):
                array[field][start : start + num_rows] = values[:, index]
        return array


def camera_of(header_comments: list[str], elements: dict[str, NDArray[np.void]]) -> Camera | None:
    """The photograph's camera, from our comments or from Apple's elements; None where neither tells."""
    words = _words(header_comments)
    try:
        if "focal_length_px" in words and "image_size" in words:
            (focal,), (width, height) = words["focal_length_px"], words["image_size"]
            return Camera(width=int(width), height=int(height), focal_length_px=float(focal))
        if "intrinsic" in elements and "image_size" in elements:
            apple_width, apple_height = elements["image_size"]["image_size"][:2]
            apple_focal = float(elements["intrinsic"]["intrinsic"][0])
            return Camera(width=int(apple_width), height=int(apple_height), focal_length_px=apple_focal)
    except (ValueError, IndexError, OverflowError, OptionError) as error:
        raise SplatError(f"what the .ply tells about the camera cannot be read: {reason_of(error)}") from error
    return None


def frame_of(header_comments: list[str]) -> Frame | None:
    """The frame by our comments; None where there are none."""
    words = _words(header_comments)
    axes = words.get("axes", [])
    if axes not in (["opencv"], ["opengl"]):
        return None
    try:
        x, y, z = (float(word) for word in words.get("camera_position", ["0", "0", "0"]))
    except ValueError as error:
        raise SplatError(
            f"what the .ply tells about the camera's position cannot be read: {reason_of(error)}"
        ) from error
    if not np.isfinite([x, y, z]).all():
        raise SplatError(f"the .ply says that the camera is at {x} {y} {z}: it is broken")
    return Frame(axes=axes[0], camera_position=(x, y, z))


def _words(header_comments: list[str]) -> dict[str, list[str]]:
    """The first word of each comment, and the others."""
    return {comment.split()[0]: comment.split()[1:] for comment in header_comments if comment.split()}


def comments(camera: Camera | None, frame: Frame) -> tuple[str, ...]:
    """What is known besides the Gaussians, for the header; the reverse of `camera_of` and `frame_of`."""
    lines = [f"generator sharp_cog {sharp_cog.__version__}"]
    if camera is not None:
        lines.append(f"focal_length_px {float(camera.focal_length_px)!r}")
        lines.append(f"image_size {camera.width} {camera.height}")
    lines += [f"axes {frame.axes}", "color_space srgb"]
    if any(frame.camera_position):
        lines.append("camera_position " + " ".join(repr(float(value)) for value in frame.camera_position))
    return tuple(lines)

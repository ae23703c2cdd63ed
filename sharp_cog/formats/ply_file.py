"""The .ply container: its header, its elements, and the comments in which sharp_cog stores the camera and the frame."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

import sharp_cog
from sharp_cog.errors import OptionError, SplatError
from sharp_cog.formats.scene import Frame, camera_fields
from sharp_cog.geometry.camera import Camera
from sharp_cog.text import plain, reason_of

# A file without an end of its header is searched no farther than this.
_MAX_HEADER_BYTES = 1 << 16
_MAX_COUNT_DIGITS = 18
"""Maximum digits of an element's count: as many as fit in 64 bits, and more than any file needs."""
_ROWS_AT_ONCE = 1 << 14
"""Rows of an ASCII file that are split into words at a time."""
_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}

_TYPE_NAMES = {
    "i1": ("char", "int8"),
    "u1": ("uchar", "uint8"),
    "i2": ("short", "int16"),
    "u2": ("ushort", "uint16"),
    "i4": ("int", "int32"),
    "u4": ("uint", "uint32"),
    "f4": ("float", "float32"),
    "f8": ("double", "float64"),
}
"""Names of each numpy type in a header, the one that is written first."""
_TYPES = {name: type_ for type_, names in _TYPE_NAMES.items() for name in names}


@dataclass(frozen=True, kw_only=True, slots=True)
class Element:
    """An element of a .ply: a table.

    Attributes:
        name: Name of the element, such as `vertex`.
        count: Number of its rows.
        properties: Name and numpy type of each column, without the byte order, such as `("x", "f4")`.
        has_lists: Whether it also has columns of lists, as the faces of meshes do.
    """

    name: str
    count: int
    properties: list[tuple[str, str]]
    has_lists: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """The parsed header of a .ply.

    Attributes:
        encoding: `ascii`, `binary_little_endian` or `binary_big_endian`.
        elements: The elements, in the file's order.
        comments: Text of the comments, without the word `comment`.
        num_bytes: Length of the header in bytes; the first element starts there.
    """

    encoding: str
    elements: list[Element]
    comments: list[str]
    num_bytes: int


def write_header(elements: Sequence[Element], comments: Sequence[str] = ()) -> bytes:
    """Return the header of a little-endian binary .ply."""
    lines = ["ply", "format binary_little_endian 1.0"]
    for element in elements:
        lines.append(f"element {element.name} {element.count}")
        lines += [f"property {_TYPE_NAMES[type_][0]} {name}" for name, type_ in element.properties]
    # Comments may stand anywhere, and the first viewers expect the vertices in the third line.
    lines += [f"comment {comment}" for comment in comments]
    return "\n".join([*lines, "end_header", ""]).encode("ascii")


def read_header(content: bytes) -> Header:
    """Parse the header of a .ply.

    Raises:
        SplatError: The content is not a .ply, or its header is broken.
    """
    head = content[:_MAX_HEADER_BYTES]
    # Lines may end with CR LF: the content starts after the LF, and `split` and `rstrip` drop each CR.
    end = head.find(b"\nend_header")
    newline = head.find(b"\n", end + 1)
    if head[:3] != b"ply" or end < 0 or newline < 0:
        raise SplatError("the file is not a .ply: its header does not start with 'ply' and end with 'end_header'")
    encoding, comments, elements = "", [], list[Element]()
    for line in head[:end].decode("latin-1").split("\n")[1:]:  # Not splitlines, which breaks comments in UTF-8.
        match line.split():
            case ["format", name, _]:
                encoding = name
            case ["comment" | "obj_info", *_]:
                comments.append(line.partition(" ")[2].rstrip())
            # isdigit would accept the superscripts of latin-1, for which int raises an error.
            case ["element", name, count] if count.isdecimal() and len(count) <= _MAX_COUNT_DIGITS:
                elements.append(Element(name=name, count=int(count), properties=[]))
            # Faces of meshes have lists; vertices with lists match only the last case, which refuses them.
            case ["property", "list", length, type_, _] if (
                {length, type_} <= _TYPES.keys() and elements and elements[-1].name != "vertex"
            ):
                elements[-1] = replace(elements[-1], has_lists=True)
            case ["property", type_, name] if type_ in _TYPES and elements:
                elements[-1].properties.append((name, _TYPES[type_]))
            case []:
                pass
            case _:
                raise SplatError(f"the .ply header has a line that cannot be read: {line[:80]!r}")
    if encoding not in _BYTE_ORDERS:
        raise SplatError(f"the .ply has the format {plain(encoding)!r}: use one of {', '.join(_BYTE_ORDERS)}")
    return Header(encoding=encoding, elements=elements, comments=comments, num_bytes=newline + 1)


def read_elements(content: bytes, header: Header) -> dict[str, NDArray[np.void]]:
    """Return the elements by name, as structured arrays.

    Rows with lists have no fixed length, so an element with such rows and those after it are left out.

    Raises:
        SplatError: An element is broken, truncated, or occurs twice.
    """
    arrays: dict[str, NDArray[np.void]] = {}
    order = _BYTE_ORDERS[header.encoding]
    rows = _Rows(content, header) if header.encoding == "ascii" else None
    position = header.num_bytes
    for element in header.elements:
        name = plain(element.name)
        if element.name in arrays:
            raise SplatError(f"the .ply has the element {name!r} twice: it is broken")
        try:
            # numpy refuses two properties of the same name.
            dtype = np.dtype([(property_, order + type_) for property_, type_ in element.properties])
        except ValueError as error:
            raise SplatError(f"the .ply element {name!r} is broken: {reason_of(error)}") from error
        if element.has_lists and element.count:
            break
        if rows is not None:
            arrays[element.name] = rows.take(element.count, dtype, name)
            continue
        # A header can promise any count, so it is compared with the bytes of the file before anything is allocated.
        needed = element.count * dtype.itemsize
        if needed > len(content) - position:
            raise SplatError(
                f"the .ply promises {element.count} of {name!r} ({needed} bytes) and has "
                f"{len(content) - position} bytes left: it is truncated"
            )
        # np.frombuffer refuses to return an empty array.
        arrays[element.name] = (
            np.frombuffer(content, dtype=dtype, count=element.count, offset=position) if needed else np.empty(0, dtype)
        )
        position += needed
    return arrays


class _Rows:
    """The lines of an ASCII .ply, read one element after the other."""

    def __init__(self, content: bytes, header: Header) -> None:
        self._num_bytes = len(content) - header.num_bytes
        # A list of all lines would take many times the memory of the file.
        self._lines = io.BytesIO(content)
        self._lines.seek(header.num_bytes)

    def take(self, count: int, dtype: np.dtype[np.void], name: str) -> NDArray[np.void]:
        """Return the next `count` rows as an array; `name` is the element's name in messages."""
        columns = dtype.names or ()
        # A line takes at least one byte; a number takes a digit and a separator, but for the last one.
        if count * max(1, 2 * len(columns)) > self._num_bytes + 1:
            raise SplatError(
                f"the .ply promises {count} of {name!r} and has {self._num_bytes} bytes of lines: it is truncated"
            )
        array = np.empty(count, dtype=dtype)
        for start in range(0, count, _ROWS_AT_ONCE):  # A list of words takes ten times the memory of the text.
            num_rows = min(_ROWS_AT_ONCE, count - start)
            # At most one word too many is split off, which is enough for the array to be refused.
            rows = [line.split(None, len(columns)) for line in islice(self._lines, num_rows)]
            try:
                # float64 holds each value of each type in `_TYPE_NAMES` exactly.
                values = np.array(rows, dtype=np.float64).reshape(num_rows, len(columns))
            except ValueError as error:
                raise SplatError(
                    f"the .ply element {name!r} has a line that is not {len(columns)} numbers, or too few lines: "
                    f"{reason_of(error)}"
                ) from error
            for index, column in enumerate(columns):
                array[column][start : start + num_rows] = values[:, index]
        return array


def metadata_comments(camera: Camera | None, frame: Frame) -> list[str]:
    """Return the comments that store the camera and the frame; `read_camera` and `read_frame` parse them."""
    comments = [f"generator sharp_cog {sharp_cog.__version__}"]
    if camera is not None:
        stored = camera_fields(camera)
        # repr is the shortest text that reads back as the same number.
        comments.append(f"focal_length_px {stored['focal_length_px']!r}")
        comments.append("image_size {} {}".format(*stored["image_size"]))
    comments += [f"axes {frame.axes}", "color_space srgb"]
    if any(frame.camera_position):
        comments.append("camera_position " + " ".join(repr(float(value)) for value in frame.camera_position))
    return comments


def read_camera(comments: Sequence[str], elements: dict[str, NDArray[np.void]]) -> Camera | None:
    """Return the photograph's camera from our comments or from Apple's elements; None if neither states it.

    Raises:
        SplatError: The camera cannot be parsed, or is impossible.
    """
    words = _words(comments)
    try:
        if "focal_length_px" in words and "image_size" in words:
            (focal,), (width, height) = words["focal_length_px"], words["image_size"]
            return Camera(width=int(width), height=int(height), focal_length_px=float(focal))
        if "intrinsic" in elements and "image_size" in elements:
            # For a property that is missing, numpy raises ValueError.
            apple_width, apple_height = elements["image_size"]["image_size"][:2]
            apple_focal = float(elements["intrinsic"]["intrinsic"][0])
            return Camera(width=int(apple_width), height=int(apple_height), focal_length_px=apple_focal)
    except (ValueError, IndexError, OverflowError, OptionError) as error:
        raise SplatError(f"the camera in the .ply cannot be read: {reason_of(error)}") from error
    return None


def read_frame(comments: Sequence[str]) -> Frame | None:
    """Return the frame from our comments; None if they do not state it.

    Raises:
        SplatError: The camera's position cannot be parsed, or is not finite.
    """
    words = _words(comments)
    axes = words.get("axes", [])
    # Another tool's comment may start with the same word, so other values are no error.
    if axes not in (["opencv"], ["opengl"]):
        return None
    try:
        x, y, z = (float(word) for word in words.get("camera_position", ["0", "0", "0"]))
    except ValueError as error:
        raise SplatError(f"the camera's position in the .ply cannot be read: {reason_of(error)}") from error
    # float accepts `nan` and `inf`.
    if not np.isfinite([x, y, z]).all():
        raise SplatError(f"the .ply says that the camera is at {x} {y} {z}: it is broken")
    return Frame(axes=axes[0], camera_position=(x, y, z))


def _words(comments: Sequence[str]) -> dict[str, list[str]]:
    """Return the words of each comment after the first, by the first."""
    return {comment.split()[0]: comment.split()[1:] for comment in comments if comment.split()}

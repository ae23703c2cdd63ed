"""The container of glTF 2.0: its JSON, buffers, accessors, nodes and cameras, read from files that may be hostile."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sharp_cog.errors import SplatError
from sharp_cog.formats.archive import ReadFile
from sharp_cog.geometry.quaternions import to_matrix
from sharp_cog.text import plain, quoted, read_json, reason_of

MAGIC = b"glTF"
"""First bytes of a .glb."""
MAX_NODES = 10_000
"""Maximum number of nodes that are visited, a node with several parents once for each."""

_HEADER = struct.Struct("<4sII")
"""Magic, version and length of the file."""
_CHUNK = struct.Struct("<I4s")
"""Length and kind of a chunk."""
_TYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
"""Types of components by glTF's number for them."""
_WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
"""Components of an element by the name of its type."""


def is_glb(content: bytes) -> bool:
    """Return whether a content has the magic bytes of a .glb and a version that exists."""
    # The first coordinate of a .splat may have the same bytes as the magic, but the second is never so small.
    return content.startswith(MAGIC) and content[len(MAGIC) :].startswith((b"\1\0\0\0", b"\2\0\0\0"))


class Document:
    """A parsed glTF.

    Args:
        content: A .glb, or the JSON of a .gltf.
        read_file: Reads a buffer that the JSON names.

    Raises:
        SplatError: The content is broken or truncated.
    """

    def __init__(self, content: bytes, read_file: ReadFile) -> None:
        self._read_file = read_file
        self._binary: bytes | None = None
        self._buffers: dict[int, bytes] = {}
        text = self._split(content) if content.startswith(MAGIC) else content
        try:
            values = read_json(text)
        except ValueError as error:
            raise SplatError(f"the glTF has no JSON that can be read: {reason_of(error)}") from error
        if not isinstance(values, dict):
            raise broken("its JSON is no object")
        self.values: dict[str, Any] = values

    def _split(self, content: bytes) -> bytes:
        """Return the JSON of a .glb, and keep its binary chunk."""
        if len(content) < _HEADER.size:
            raise SplatError("the .glb ends within its header: it is truncated")
        _, version, length = _HEADER.unpack_from(content)
        if version != 2:
            raise SplatError(f"the .glb has version {version}: version 2 can be read")
        if length > len(content):
            raise SplatError(f"the .glb promises {length} bytes and has {len(content)}: it is truncated")
        text, position = None, _HEADER.size
        while position + _CHUNK.size <= length:
            size, kind = _CHUNK.unpack_from(content, position)
            position += _CHUNK.size
            if size > length - position:
                raise SplatError(
                    f"a chunk of the .glb has {size} bytes where {length - position} are left: it is broken"
                )
            if kind == b"JSON" and text is None:
                text = content[position : position + size]
            elif kind == b"BIN\0" and self._binary is None:
                self._binary = content[position : position + size]
            position += size
        if text is None:
            raise SplatError("the .glb has no JSON: it is broken")
        return text

    def item(self, kind: str, index: object) -> dict[str, Any]:
        """Return an object of one of the lists of the document, such as `meshes`."""
        items = self.values.get(kind, [])
        if not isinstance(items, list) or not isinstance(index, int) or not 0 <= index < len(items):
            raise broken(f"it refers to {quoted(index)} of its {kind}, which does not exist")
        if not isinstance(items[index], dict):
            raise broken(f"{index} of its {kind} is no object")
        item: dict[str, Any] = items[index]
        return item

    def view(self, index: object) -> memoryview:
        """Return the bytes of a buffer view."""
        view = self.item("bufferViews", index)
        buffer = self._buffer(view.get("buffer"))
        start, length = count_of(view, "byteOffset", 0), count_of(view, "byteLength")
        if start + length > len(buffer):
            raise SplatError(
                f"a view of the glTF ends at byte {start + length} of a buffer with {len(buffer)}: it is truncated"
            )
        return memoryview(buffer)[start : start + length]

    def _buffer(self, index: object) -> bytes:
        values = self.item("buffers", index)
        assert isinstance(index, int)
        if index not in self._buffers:
            self._buffers[index] = self._load(index, values.get("uri"))
        return self._buffers[index]

    def _load(self, index: int, uri: object) -> bytes:
        if uri is None:
            if index or self._binary is None:
                raise broken(f"its buffer {index} has no content")
            return self._binary
        if not isinstance(uri, str):
            raise broken(f"the address of its buffer {index} is {quoted(uri)}")
        head, comma, data = uri.partition(",")
        if not uri.startswith("data:"):
            return self._read_file(uri)
        if not comma or not head.endswith(";base64"):
            raise broken(f"its buffer {index} is no base64")
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise broken(f"its buffer {index} is no base64: {reason_of(error)}") from error

    def accessor(self, index: object, width: int) -> NDArray[np.float32]:
        """Return the elements of an accessor, (count, width) float32; normalised integers become numbers."""
        accessor = self.item("accessors", index)
        type_ = _TYPES.get(accessor.get("componentType", 0)) if is_integer(accessor.get("componentType")) else None
        found = _WIDTHS.get(accessor["type"]) if isinstance(accessor.get("type"), str) else None
        if type_ is None or found != width:
            raise broken(
                f"an attribute has the type {quoted(accessor.get('type'))} of {quoted(accessor.get('componentType'))}, "
                f"not of {width} numbers"
            )
        if "sparse" in accessor or "bufferView" not in accessor:
            raise SplatError("an attribute of the glTF is sparse or has no values: export it with plain buffers")
        count = count_of(accessor, "count")
        dtype = np.dtype(type_)
        view = self.item("bufferViews", accessor["bufferView"])
        content = self.view(accessor["bufferView"])
        size = dtype.itemsize * width
        stride, start = count_of(view, "byteStride", size), count_of(accessor, "byteOffset", 0)
        # A stride below the size would make many elements of few bytes.
        if stride < size or start + (stride * (count - 1) + size if count else 0) > len(content):
            raise SplatError(
                f"an attribute of the glTF promises {count} elements in {len(content)} bytes: it is truncated"
            )
        values = np.ndarray((count, width), dtype, content, start, (stride, dtype.itemsize)).astype(np.float32)
        if accessor.get("normalized") is True and dtype.kind in "iu":
            values /= np.float32(np.iinfo(dtype).max)
            if dtype.kind == "i":
                np.maximum(values, -1.0, out=values)
        return values

    def nodes(self) -> Iterator[tuple[dict[str, Any], NDArray[np.float64]]]:
        """Yield the nodes of the scene with the matrices (4, 4) that place them in it."""
        waiting = [(index, np.eye(4)) for index in reversed(self._roots())]
        num_visited = 0
        while waiting:
            index, parent = waiting.pop()
            num_visited += 1
            if num_visited > MAX_NODES:
                raise broken(f"its scene has more than {MAX_NODES} nodes, or a circle of nodes")
            node = self.item("nodes", index)
            placed = parent @ _matrix(node)
            yield node, placed
            waiting += [(child, placed) for child in reversed(list_of(node, "children"))]

    def _roots(self) -> list[object]:
        if "scenes" not in self.values:  # A library of objects: all nodes that are nobody's children.
            nodes = list_of(self.values, "nodes")
            children = {
                child
                for node in nodes
                if isinstance(node, dict)
                for child in list_of(node, "children")
                if is_integer(child)
            }
            return [index for index in range(len(nodes)) if index not in children]
        return list_of(self.item("scenes", self.values.get("scene", 0)), "nodes")


def broken(fault: str) -> SplatError:
    """Return the error for a fault in the structure of a glTF."""
    return SplatError(f"the glTF is broken: {fault}")


def is_integer(value: object) -> bool:
    """Report whether a value of JSON is an integer, which Python's booleans are not here."""
    return isinstance(value, int) and not isinstance(value, bool)


def count_of(values: dict[str, Any], name: str, default: int | None = None) -> int:
    """Return a field that is an integer of at least 0."""
    value = values.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise broken(f"{name} is {quoted(value)}")
    return value


def list_of(values: dict[str, Any], name: str) -> list[Any]:
    """Return a field that is a list, or an empty list without it."""
    value = values.get(name, [])
    if not isinstance(value, list):
        raise broken(f"{plain(name)} is {quoted(value)}")
    return value


def numbers_of(values: dict[str, Any], name: str, default: list[float]) -> NDArray[np.float64]:
    """Return a field that is a list of as many finite numbers as its default has."""
    value = values.get(name, default)
    try:
        numbers = np.array(value, dtype=np.float64)
    except (ValueError, TypeError, OverflowError) as error:
        raise broken(f"{name} is {quoted(value)}") from error
    if numbers.shape != (len(default),) or not np.isfinite(numbers).all():
        raise broken(f"{name} is {quoted(value)}")
    return numbers


def _matrix(node: dict[str, Any]) -> NDArray[np.float64]:
    """Return the matrix of a node, which has it in columns, or has a translation, a rotation and a scale."""
    if "matrix" in node:
        return numbers_of(node, "matrix", np.eye(4).ravel().tolist()).reshape(4, 4).T
    matrix = np.eye(4)
    x, y, z, w = numbers_of(node, "rotation", [0.0, 0.0, 0.0, 1.0]).tolist()
    length = math.hypot(x, y, z, w)
    if not 0 < length < math.inf:
        raise broken(f"rotation is {quoted(node.get('rotation'))}")
    matrix[:3, :3] = to_matrix((w / length, x / length, y / length, z / length)) * numbers_of(node, "scale", [1.0] * 3)
    matrix[:3, 3] = numbers_of(node, "translation", [0.0] * 3)
    return matrix

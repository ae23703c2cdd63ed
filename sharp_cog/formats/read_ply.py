"""Reads .ply files of 3D Gaussians: ours, Apple's, and those of other tools with the same properties."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sharp_cog.camera import Camera
from sharp_cog.color import srgb_to_linear
from sharp_cog.errors import OptionError, SplatError
from sharp_cog.formats.ply import PROPERTIES, SH_C0
from sharp_cog.gaussians import Gaussians

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
_BYTE_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}


@dataclass(frozen=True, kw_only=True, slots=True)
class Splat:
    """A splat read from a file.

    Attributes:
        gaussians: N Gaussians on the CPU, in the file's axes.
        camera: The photograph's camera, where the file tells.
    """

    gaussians: Gaussians
    camera: Camera | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Element:
    name: str
    count: int
    fields: list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    is_ascii: bool
    elements: list[_Element]
    comments: list[str]
    num_bytes: int


def read(source: Path | bytes) -> Splat:
    """Reads a splat; properties that are not needed, such as higher spherical harmonics, are passed over.

    Args:
        source: A file, or its content: binary of either byte order, or ASCII.

    Raises:
        SplatError: Not a .ply, broken, truncated, or without what a Gaussian needs.
    """
    content = source if isinstance(source, bytes) else _content(source)
    header = _parse_header(content)
    elements = _read_elements(content, header)
    if "vertex" not in elements:
        raise SplatError("the .ply has no element 'vertex': it is not a splat")
    gaussians = _gaussians(elements["vertex"], is_linear=_is_linear(elements))
    return Splat(gaussians=gaussians, camera=_camera(header.comments, elements))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SplatError(f"{path} cannot be read: {error.strerror or error}") from error


def _parse_header(content: bytes) -> _Header:
    head = content[:_MAX_HEADER_BYTES]
    end = head.find(b"\nend_header")
    newline = head.find(b"\n", end + 1)
    if head[:3] != b"ply" or end < 0 or newline < 0:
        raise SplatError("the file is not a .ply: its header does not start with 'ply' and end with 'end_header'")
    format_name, comments, elements = "", [], list[_Element]()
    for line in head[:end].decode("latin-1").split("\n")[1:]:  # Not splitlines, which breaks comments in UTF-8.
        match line.split():
            case ["format", name, _]:
                format_name = name
            case ["comment" | "obj_info", *_]:
                comments.append(line.partition(" ")[2].rstrip())
            case ["element", name, count] if count.isdecimal() and len(count) <= _MAX_COUNT_DIGITS:
                elements.append(_Element(name=name, count=int(count), fields=[]))
            case ["property", type_, name] if type_ in _TYPES and elements:
                elements[-1].fields.append((name, _TYPES[type_]))
            case []:
                pass
            case _:
                raise SplatError(f"the .ply header has a line that cannot be read: {line[:80]!r}")
    if format_name not in _BYTE_ORDERS:
        raise SplatError(f"the .ply has the format {format_name!r}: use one of {', '.join(_BYTE_ORDERS)}")
    order = _BYTE_ORDERS[format_name]
    elements = [
        _Element(
            name=element.name, count=element.count, fields=[(name, order + type_) for name, type_ in element.fields]
        )
        for element in elements
    ]
    return _Header(is_ascii=format_name == "ascii", elements=elements, comments=comments, num_bytes=newline + 1)


def _read_elements(content: bytes, header: _Header) -> dict[str, NDArray[np.void]]:
    """Structured arrays by the element's name; counts are checked against the bytes before anything is allocated."""
    arrays = {}
    position = header.num_bytes
    rows = content[position:].split(b"\n") if header.is_ascii else []
    for element in header.elements:
        try:
            dtype = np.dtype(element.fields)
        except ValueError as error:
            raise SplatError(f"the .ply element {element.name!r} is broken: {error}") from error
        if header.is_ascii:
            if element.count > len(rows):
                raise SplatError(f"the .ply promises {element.count} of {element.name!r} and has {len(rows)} lines")
            taken, rows = rows[: element.count], rows[element.count :]
            arrays[element.name] = _parse_rows(taken, dtype, element.name)
            continue
        needed = element.count * dtype.itemsize
        if needed > len(content) - position:
            raise SplatError(
                f"the .ply promises {element.count} of {element.name!r} ({needed} bytes) and has "
                f"{len(content) - position} bytes left: it is truncated"
            )
        arrays[element.name] = np.frombuffer(content, dtype=dtype, count=element.count, offset=position)
        position += needed
    return arrays


def _parse_rows(rows: list[bytes], dtype: np.dtype[np.void], name: str) -> NDArray[np.void]:
    fields = dtype.names or ()
    try:
        values = np.array([row.split() for row in rows], dtype=np.float64).reshape(len(rows), len(fields))
    except ValueError as error:
        raise SplatError(f"the .ply element {name!r} has a line that is not {len(fields)} numbers: {error}") from error
    array = np.empty(len(rows), dtype=dtype)
    for index, field in enumerate(fields):
        array[field] = values[:, index]
    return array


def _is_linear(elements: dict[str, NDArray[np.void]]) -> bool:
    """Whether Apple's element says that colours are linear (1); without it they are sRGB, as viewers take them."""
    element = elements.get("color_space")
    if element is None or "color_space" not in (element.dtype.names or ()) or not len(element):
        return False
    return bool(element["color_space"][0] == 1)


def _gaussians(vertices: NDArray[np.void], *, is_linear: bool) -> Gaussians:
    missing = [name for name in PROPERTIES if name not in (vertices.dtype.names or ())]
    if missing:
        raise SplatError(f"the .ply has no {', '.join(missing)}: it holds points or a mesh, not Gaussians")

    def columns(*names: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([vertices[name].astype(np.float32) for name in names], axis=-1))

    quaternions = columns("rot_0", "rot_1", "rot_2", "rot_3")
    # A quaternion of length zero stands for no rotation; q and -q are the same one. Relative to the largest component,
    # so that no square over- or underflows.
    quaternions[(quaternions == 0).all(dim=-1)] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    quaternions = quaternions / quaternions.abs().amax(dim=-1, keepdim=True)
    quaternions = torch.nn.functional.normalize(quaternions, dim=-1)
    colors = (columns("f_dc_0", "f_dc_1", "f_dc_2") * SH_C0 + 0.5).clamp_(0.0, 1.0)
    gaussians = Gaussians(
        means=columns("x", "y", "z"),
        scales=columns("scale_0", "scale_1", "scale_2").exp_(),
        quaternions_wxyz=quaternions * torch.where(quaternions[:, :1] < 0, -1.0, 1.0),
        colors_linear=colors if is_linear else srgb_to_linear(colors),
        opacities=columns("opacity")[:, 0].sigmoid(),
    )
    for name in ("means", "scales", "quaternions_wxyz", "colors_linear", "opacities"):
        num_bad = int((~getattr(gaussians, name).isfinite()).sum())
        if num_bad:
            raise SplatError(f"the .ply has {num_bad} values of {name} that are not finite: it is broken")
    return gaussians


def _camera(comments: list[str], elements: dict[str, NDArray[np.void]]) -> Camera | None:
    """The photograph's camera, from our comments or from Apple's elements; None where neither tells."""
    words = {comment.split()[0]: comment.split()[1:] for comment in comments if comment.split()}
    try:
        if "focal_length_px" in words and "image_size" in words:
            (focal,), (width, height) = words["focal_length_px"], words["image_size"]
            return Camera(width=int(width), height=int(height), focal_length_px=float(focal))
        if "intrinsic" in elements and "image_size" in elements:
            apple_width, apple_height = elements["image_size"]["image_size"][:2]
            apple_focal = float(elements["intrinsic"]["intrinsic"][0])
            return Camera(width=int(apple_width), height=int(apple_height), focal_length_px=apple_focal)
    except (ValueError, IndexError, OverflowError, OptionError) as error:
        raise SplatError(f"what the .ply tells about the camera cannot be read: {error}") from error
    return None

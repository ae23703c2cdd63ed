"""Binary glTF with KHR_gaussian_splatting: splats for tools that exchange 3D models.

The extension is specified at https://github.com/KhronosGroup/glTF, extensions/2.0/Khronos/KHR_gaussian_splatting:
scales and opacities are stored directly, not as logarithms and logits, and quaternions in the order x y z w. In glTF, y
is up and cameras look along -z, so the photograph's camera has glTF's default orientation.

Files of other tools are read too: with plain attributes, with an earlier draft's logarithms of scales, and with a .spz
inside (KHR_gaussian_splatting_compression_spz_2 and earlier names of it).
"""

from __future__ import annotations

import io
import json
import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import sharp_cog
from sharp_cog.errors import OutputError, SplatError
from sharp_cog.formats.archive import files_beside
from sharp_cog.formats.gltf import Document, broken, list_of, numbers_of
from sharp_cog.formats.limits import MAX_EXPANDED_GAUSSIANS, MAX_LENGTH_M, MIN_SCALE_M
from sharp_cog.formats.ply import SH_C0, vertex_block
from sharp_cog.formats.quaternions import to_unit
from sharp_cog.formats.scene import Frame, Splat, camera_fields, camera_from_fields
from sharp_cog.formats.spz import read_spz, write_spz
from sharp_cog.geometry import transform
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import NUM_BANDS, Gaussians
from sharp_cog.geometry.quaternions import from_matrix
from sharp_cog.imaging.color import srgb_to_linear
from sharp_cog.text import quoted

EXTENSION = "KHR_gaussian_splatting"
SPZ_EXTENSIONS = (
    "KHR_gaussian_splatting_compression_spz_2",
    "KHR_gaussian_splatting_compression_spz",
    "KHR_spz_gaussian_splats_compression",
    "KHR_spz_compression",
)
"""Names of the extension for a .spz inside a glTF, from the newest to the oldest draft."""
MAX_DEGREE = 3
"""Highest degree of spherical harmonics that the extension has attributes for."""
GLB_FRAME = Frame(axes="opengl")
"""Frame that glTF requires."""

_MAX_BYTES = (1 << 32) - 1
"""Maximum size of a .glb, whose header has 32 bits for it."""

# glTF's constants, named as in its specification.
_FLOAT = 5126
_UNSIGNED_BYTE = 5121
_ARRAY_BUFFER = 34962
_POINTS = 0
_TYPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}
"""Names of the types of an accessor, by the number of components."""
_SRGB = "srgb_rec709_display"
_LINEAR = "lin_rec709_display"

_ASSUMED_HEIGHT = 800
"""Height in pixels of the image of a camera that another tool wrote, which states only its aspect."""
_MAX_ASPECT = 100.0
"""Largest aspect of a camera that is no fault."""


def write_glb(
    file: BinaryIO,
    gaussians: Gaussians,
    camera: Camera | None,
    frame: Frame = GLB_FRAME,
    *,
    compression: str = "none",
) -> None:
    """Write a .glb with a node for the Gaussians and one for the photograph's camera; all values are float32.

    Spherical harmonics are written up to degree `MAX_DEGREE`.

    Viewers without support for the extension show the Gaussians as coloured points.

    Args:
        file: Binary file to write to.
        gaussians: N Gaussians on any device, y up.
        camera: Camera of the photograph, if it is known.
        frame: Frame of the Gaussians' coordinates; its axes must be `opengl`.
        compression: `none`, or `spz` for a .spz of version 3 in place of the attributes, whose coordinates are those of
            the glTF, as CesiumJS takes them.

    Raises:
        PredictionError: A value is not finite.
        OutputError: The file would exceed 4 GB, or a position is too far away for a .spz.
    """
    assert frame.axes == "opengl", "glTF's y is up"
    block = vertex_block(gaussians)
    views = _views(block, gaussians) if len(block) else {}
    document = _document(views, len(block), camera, frame)
    if compression == "spz" and views:
        views = {"spz": _compress(document, gaussians)}
    num_bytes = sum(view.nbytes for view in views.values())
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii")
    # Chunks start at multiples of 4 bytes, so JSON is padded with spaces.
    text += b" " * (-len(text) % 4)
    # The file has a header of 12 bytes, and each of its chunks one of 8.
    total = 12 + 8 + len(text) + (8 + num_bytes if views else 0)
    if total > _MAX_BYTES:
        raise OutputError(
            f"{len(block)} Gaussians make a .glb of {total} bytes, the limit is {_MAX_BYTES}: lower max_gaussians"
        )
    file.write(struct.pack("<4sII", b"glTF", 2, total))
    file.write(struct.pack("<I4s", len(text), b"JSON"))
    file.write(text)
    if views:
        file.write(struct.pack("<I4s", num_bytes, b"BIN\0"))
        for view in views.values():
            file.write(view.data)


def _views(block: NDArray[np.float32], gaussians: Gaussians) -> dict[str, NDArray[Any]]:
    """Return the attributes by name, (N, channels), each a multiple of 4 bytes long."""
    linear = gaussians.colors_linear.cpu().numpy()
    opacities = gaussians.opacities.cpu().unsqueeze(-1).numpy()
    # Viewers without the extension take vertex colours as linear, as glTF defines them.
    rgba = np.concatenate([linear, opacities], axis=1).clip(0.0, 1.0) * np.float32(255.0)
    # The exponentials of the block's logarithms would have lost digits.
    scales = gaussians.scales.cpu().clamp(MIN_SCALE_M, MAX_LENGTH_M).numpy()
    views: dict[str, NDArray[Any]] = {
        "POSITION": block[:, 0:3],
        "COLOR_0": np.rint(rgba).astype(np.uint8),
        f"{EXTENSION}:SCALE": scales,
        f"{EXTENSION}:ROTATION": block[:, [11, 12, 13, 10]],
        f"{EXTENSION}:OPACITY": opacities.clip(0.0, 1.0),
        _harmonic(0, 0): block[:, 3:6],
    }
    if gaussians.harmonics is not None:
        harmonics = gaussians.harmonics.cpu().numpy()
        for degree in range(1, min(gaussians.degree, MAX_DEGREE) + 1):
            for index in range(2 * degree + 1):
                views[_harmonic(degree, index)] = harmonics[:, NUM_BANDS[degree - 1] + index]
    return {
        name: np.ascontiguousarray(view, dtype=view.dtype if view.dtype == np.uint8 else "<f4")
        for name, view in views.items()
    }


def _compress(document: dict[str, Any], gaussians: Gaussians) -> NDArray[np.uint8]:
    """Return a .spz, padded to a multiple of 4 bytes, and let a document refer to it in place of attributes."""
    spz = io.BytesIO()
    write_spz(spz, gaussians, None)
    num_bytes = len(spz.getvalue())
    primitive = document["meshes"][0]["primitives"][0]
    for name in (f"{EXTENSION}:OPACITY", _harmonic(0, 0)):  # The .spz has both in the attribute COLOR_0.
        del primitive["attributes"][name]
    kept = [document["accessors"][index] for index in primitive["attributes"].values()]
    # What the .spz provides has accessors without a view.
    document["accessors"] = [{key: value for key, value in one.items() if key != "bufferView"} for one in kept]
    primitive["attributes"] = {name: index for index, name in enumerate(primitive["attributes"])}
    primitive["extensions"][EXTENSION]["extensions"] = {SPZ_EXTENSIONS[0]: {"bufferView": 0}}
    document["bufferViews"] = [{"buffer": 0, "byteOffset": 0, "byteLength": num_bytes}]
    padded = np.frombuffer(spz.getvalue() + bytes(-num_bytes % 4), dtype=np.uint8)
    document["buffers"] = [{"byteLength": padded.nbytes}]
    document["extensionsUsed"] = document["extensionsRequired"] = [EXTENSION, SPZ_EXTENSIONS[0]]
    return padded


def _document(views: dict[str, NDArray[Any]], count: int, camera: Camera | None, frame: Frame) -> dict[str, Any]:
    """Return the JSON part of the file."""
    accessors: list[dict[str, Any]] = []
    buffer_views: list[dict[str, Any]] = []
    num_bytes = 0
    # Views, accessors and attributes have the same indices, in the order of the binary chunk.
    for index, (name, view) in enumerate(views.items()):
        is_byte = view.dtype == np.uint8
        accessor = {
            "bufferView": index,
            "componentType": _UNSIGNED_BYTE if is_byte else _FLOAT,
            "count": count,
            "type": _TYPES[view.shape[1]],
        }
        if is_byte:
            accessor["normalized"] = True
        # glTF demands bounds of positions. `tolist` is exact, so that validators find the same numbers in the data.
        if name == "POSITION":
            accessor |= {"min": view.min(axis=0).tolist(), "max": view.max(axis=0).tolist()}
        accessors.append(accessor)
        view_bytes = {"buffer": 0, "byteOffset": num_bytes, "byteLength": view.nbytes, "target": _ARRAY_BUFFER}
        buffer_views.append(view_bytes)
        num_bytes += view.nbytes
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": f"sharp_cog {sharp_cog.__version__}"},
        "scene": 0,
        "scenes": [{"nodes": [0] if camera is None else [0, 1]}],
        "nodes": [{"name": "splat"}],
    }
    if camera is not None:
        perspective = {
            "aspectRatio": camera.width / camera.height,
            "yfov": math.radians(camera.vertical_fov_degrees),
            # Without `zfar`, the projection is infinite and nothing far is cut off.
            "znear": 0.01,
        }
        node = {"camera": 0, "translation": list(frame.camera_position), "extras": camera_fields(camera)}
        document["nodes"].append({"name": "photograph", **node})
        document["cameras"] = [{"type": "perspective", "perspective": perspective}]
    if views:  # glTF has no empty accessors: without Gaussians, the node has no mesh.
        # The colour space is that of the harmonics; COLOR_0 is linear.
        splatting = {"kernel": "ellipse", "colorSpace": _SRGB}
        primitive = {
            "attributes": {name: index for index, name in enumerate(views)},
            "mode": _POINTS,
            "extensions": {EXTENSION: splatting},
        }
        document["nodes"][0]["mesh"] = 0
        document |= {
            "extensionsUsed": [EXTENSION],
            "meshes": [{"primitives": [primitive]}],
            "accessors": accessors,
            "bufferViews": buffer_views,
            "buffers": [{"byteLength": num_bytes}],
        }
    return document


def read_glb(content: bytes, folder: Path | None = None) -> Splat:
    """Read a .glb or a .gltf; all meshes with Gaussians in the scene become one splat.

    Args:
        content: The whole file.
        folder: Folder of a .gltf, with its buffers.

    Returns:
        The Gaussians in the order of the nodes, and the first perspective camera of the scene.

    Raises:
        SplatError: The content is not a glTF, holds no Gaussians, is broken or truncated, or a buffer is missing.
    """
    document = Document(content, files_beside(folder, ".gltf"))
    parts: list[Gaussians] = []
    meshes: dict[int, list[Gaussians]] = {}
    camera, frame = None, _frame_of_generator(document)
    num_left = MAX_EXPANDED_GAUSSIANS
    for node, matrix in document.nodes():
        if "camera" in node and camera is None:
            camera = _camera(document, node)
            frame = frame if camera is None else _frame(matrix)
        if "mesh" not in node:
            continue
        mesh = document.item("meshes", node["mesh"])
        if id(mesh) not in meshes:  # Many nodes may show the same mesh.
            primitives = (_primitive(document, primitive) for primitive in list_of(mesh, "primitives"))
            meshes[id(mesh)] = [part for part in primitives if part is not None]
        for part in meshes[id(mesh)]:
            num_left -= len(part)
            if num_left < 0 and parts:
                raise SplatError(f"the glTF shows more than {MAX_EXPANDED_GAUSSIANS} Gaussians: split it")
            parts.append(_placed(part, matrix))
    if not parts and "meshes" in document.values:
        raise SplatError(f"the glTF has meshes without {EXTENSION}: it holds no Gaussians")
    return Splat(gaussians=transform.concatenate(parts), camera=camera, frame=frame)


def _primitive(document: Document, primitive: object) -> Gaussians | None:
    """Return the Gaussians of a primitive; None for a mesh."""
    extensions = primitive.get("extensions") if isinstance(primitive, dict) else None
    if not isinstance(primitive, dict) or not isinstance(extensions, dict):
        return None
    splatting = extensions.get(EXTENSION)
    nested = splatting.get("extensions", {}) if isinstance(splatting, dict) else {}
    for named in (nested, extensions):
        for name in SPZ_EXTENSIONS:
            if isinstance(named, dict) and isinstance(named.get(name), dict):
                return _from_spz(bytes(document.view(named[name].get("bufferView"))))
    if not isinstance(splatting, dict):
        return None
    kernel, color_space = splatting.get("kernel", "ellipse"), splatting.get("colorSpace", _SRGB)
    if kernel != "ellipse" or color_space not in (_SRGB, _LINEAR):
        raise SplatError(
            f"the glTF has the kernel {quoted(kernel)} and the colour space {quoted(color_space)}: the "
            f"kernel ellipse with {_SRGB} or {_LINEAR} can be read"
        )
    return _from_attributes(document, primitive, is_linear=color_space == _LINEAR)


def _from_spz(content: bytes) -> Gaussians:
    """Return the Gaussians of a .spz inside a glTF, whose coordinates CesiumJS takes as they are."""
    return read_spz(content).gaussians


def _from_attributes(document: Document, primitive: dict[str, Any], *, is_linear: bool) -> Gaussians:
    attributes = primitive.get("attributes")
    attributes = attributes if isinstance(attributes, dict) else {}

    def attribute(name: str, width: int) -> Tensor:
        if name not in attributes:
            raise SplatError(f"the glTF has {EXTENSION} without the attribute {name}: it is broken")
        return torch.from_numpy(document.accessor(attributes[name], width))

    means = attribute("POSITION", 3)
    scales = attribute(f"{EXTENSION}:SCALE", 3)
    if (scales < 0).any():  # The draft that was reviewed stored logarithms, of which some are always negative.
        scales = scales.exp_()
    colors = attribute(_harmonic(0, 0), 3).mul_(SH_C0).add_(0.5)
    opacities = attribute(f"{EXTENSION}:OPACITY", 1)[:, 0].clamp_(0.0, 1.0)
    quaternions = attribute(f"{EXTENSION}:ROTATION", 4)
    # A degree is whole, and follows those below it.
    degree = max((degree for degree in range(1, MAX_DEGREE + 1) if _harmonic(degree, 0) in attributes), default=0)
    bands = [attribute(_harmonic(of, index), 3) for of in range(1, degree + 1) for index in range(2 * of + 1)]
    if len({len(values) for values in (means, scales, colors, opacities, quaternions, *bands)}) > 1:
        raise broken("the attributes of its Gaussians have different lengths")
    return Gaussians(
        means=means,
        scales=scales,
        quaternions_wxyz=to_unit(quaternions[:, [3, 0, 1, 2]]),
        colors_linear=colors if is_linear else srgb_to_linear(colors),
        opacities=opacities,
        harmonics=torch.stack(bands, dim=1) if bands else None,
    )


def _harmonic(degree: int, index: int) -> str:
    """Return the name of the attribute for a spherical harmonic."""
    return f"{EXTENSION}:SH_DEGREE_{degree}_COEF_{index}"


def _placed(gaussians: Gaussians, matrix: NDArray[np.float64]) -> Gaussians:
    if (matrix == np.eye(4)).all():
        return gaussians
    try:
        return transform.place(gaussians, matrix)
    except ValueError as error:
        raise SplatError(f"a node of the glTF cannot move Gaussians: {error}: apply it in another tool") from error


def _camera(document: Document, node: dict[str, Any]) -> Camera | None:
    """Return a node's camera; None if it is not perspective, or states no aspect."""
    camera = document.item("cameras", node["camera"])
    own = camera_from_fields(node.get("extras"), ".glb")
    perspective = camera.get("perspective")
    if own is not None or not isinstance(perspective, dict) or "aspectRatio" not in perspective:
        return own
    aspect, yfov = (numbers_of({name: [perspective.get(name)]}, name, [0.0])[0] for name in ("aspectRatio", "yfov"))
    width = round(aspect * _ASSUMED_HEIGHT) if 0 < aspect < _MAX_ASPECT else 0
    if not width or not 0 < yfov < math.pi:
        raise broken(f"its camera has the aspect {aspect:g} and the field of view {yfov:g}")
    focal_length_px = _ASSUMED_HEIGHT / 2 / math.tan(yfov / 2)
    return Camera(width=width, height=_ASSUMED_HEIGHT, focal_length_px=focal_length_px)


def _frame_of_generator(document: Document) -> Frame:
    """Return the frame of a file without a camera, by the program that it says has written it."""
    asset = document.values.get("asset")
    generator = asset.get("generator") if isinstance(asset, dict) else None
    # It turns .ply files by 180 degrees about z, so that they are upright, and looks at them along +z.
    if isinstance(generator, str) and generator.startswith("splat-transform"):
        return Frame(axes="opengl", camera_rotation_wxyz=(0.0, 0.0, 0.0, 1.0))
    return GLB_FRAME


def _frame(matrix: NDArray[np.float64]) -> Frame:
    """Return the frame of a scene whose camera, which looks along -z with y up, is placed by a matrix."""
    x, y, z = matrix[:3, 3].tolist()
    scales = np.linalg.norm(matrix[:3, :3], axis=0)
    if not (scales > 0).all() or not np.isfinite(matrix).all():
        raise broken("the matrix of its camera is not invertible")
    # OpenCV's axes are turned by 180 degrees about x from those of a camera in glTF.
    rotation = matrix[:3, :3] / scales * [1.0, -1.0, -1.0]
    if (rotation == np.diag([1.0, -1.0, -1.0])).all():
        return Frame(axes="opengl", camera_position=(x, y, z))
    w, i, j, k = from_matrix(rotation)
    return Frame(axes="opengl", camera_position=(x, y, z), camera_rotation_wxyz=(w, i, j, k))

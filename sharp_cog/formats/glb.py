"""Binary glTF with KHR_gaussian_splatting: splats for tools that exchange 3D models.

The extension is specified at https://github.com/KhronosGroup/glTF, extensions/2.0/Khronos/KHR_gaussian_splatting:
scales and opacities are stored directly, not as logarithms and logits, and quaternions in the order x y z w. In glTF, y
is up and cameras look along -z, so the photograph's camera has glTF's default orientation.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

import sharp_cog
from sharp_cog.errors import OutputError
from sharp_cog.formats.limits import MAX_LENGTH_M, MIN_SCALE_M
from sharp_cog.formats.ply import vertex_block
from sharp_cog.formats.scene import Frame, camera_fields
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians

EXTENSION = "KHR_gaussian_splatting"
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


def write_glb(file: BinaryIO, gaussians: Gaussians, camera: Camera | None, frame: Frame = GLB_FRAME) -> None:
    """Write a .glb with a node for the Gaussians and one for the photograph's camera; all values are float32.

    Viewers without support for the extension show the Gaussians as coloured points.

    Args:
        file: Binary file to write to.
        gaussians: N Gaussians on any device, y up.
        camera: Camera of the photograph, if it is known.
        frame: Frame of the Gaussians' coordinates; its axes must be `opengl`.

    Raises:
        PredictionError: A value is not finite.
        OutputError: The file would exceed 4 GB.
    """
    assert frame.axes == "opengl", "glTF's y is up"
    block = vertex_block(gaussians)
    views = _views(block, gaussians) if len(block) else {}
    num_bytes = sum(view.nbytes for view in views.values())
    document = _document(views, len(block), camera, frame)
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
        f"{EXTENSION}:SH_DEGREE_0_COEF_0": block[:, 3:6],
    }
    return {
        name: np.ascontiguousarray(view, dtype=view.dtype if view.dtype == np.uint8 else "<f4")
        for name, view in views.items()
    }


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
        splatting = {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}
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

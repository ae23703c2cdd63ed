"""Binary glTF with KHR_gaussian_splatting: splats that travel as any other 3D model.

The extension is specified at https://github.com/KhronosGroup/glTF, extensions/2.0/Khronos/KHR_gaussian_splatting:
scales and opacities are stored as they are used, not as logarithms and logits, and quaternions in the order x y z w.
glTF's y is up and its cameras look along -z, so the photograph's camera is glTF's default one.
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
from sharp_cog.formats.scene import Frame
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians

EXTENSION = "KHR_gaussian_splatting"
GLB_FRAME = Frame(axes="opengl")

_MAX_BYTES = (1 << 32) - 1
"""A .glb counts its bytes in 32 bits."""
_FLOAT, _UNSIGNED_BYTE, _ARRAY_BUFFER, _POINTS = 5126, 5121, 34962, 0
_TYPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}


def write_glb(file: BinaryIO, gaussians: Gaussians, camera: Camera | None, frame: Frame = GLB_FRAME) -> None:
    """Writes a .glb with a node of Gaussians and one of the photograph's camera; everything in float32.

    Viewers that do not know the extension show the Gaussians as coloured points.

    Args:
        file: Where to.
        gaussians: N Gaussians on any device, y up.
        camera: The photograph's camera, if it is known.
        frame: OpenGL axes; says where the camera stands.

    Raises:
        PredictionError: A value is not finite.
        OutputError: There are more Gaussians than a .glb holds.
    """
    assert frame.axes == "opengl", "glTF's y is up"
    block = vertex_block(gaussians)
    views = _views(block, gaussians) if len(block) else {}
    num_bytes = sum(view.nbytes for view in views.values())
    document = _document(views, len(block), camera, frame)
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii")
    text += b" " * (-len(text) % 4)
    total = 12 + 8 + len(text) + (8 + num_bytes if views else 0)
    if total > _MAX_BYTES:
        raise OutputError(f"{len(block)} Gaussians make a .glb of {total} bytes, it holds {_MAX_BYTES}: keep fewer")
    file.write(struct.pack("<4sII", b"glTF", 2, total))
    file.write(struct.pack("<I4s", len(text), b"JSON"))
    file.write(text)
    if views:
        file.write(struct.pack("<I4s", num_bytes, b"BIN\0"))
        for view in views.values():
            file.write(view.data)


def _views(block: NDArray[np.float32], gaussians: Gaussians) -> dict[str, NDArray[Any]]:
    """The attributes by name, (N, channels), each a multiple of 4 bytes long."""
    linear = gaussians.colors_linear.cpu().numpy()
    opacities = gaussians.opacities.cpu().unsqueeze(-1).numpy()
    # Outside of splats, glTF's colours are linear.
    rgba = np.concatenate([linear, opacities], axis=1).clip(0.0, 1.0) * np.float32(255.0)
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
    """The JSON of the file."""
    accessors: list[dict[str, Any]] = []
    buffer_views: list[dict[str, Any]] = []
    num_bytes = 0
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
            "znear": 0.01,
        }
        extras = {"focal_length_px": float(camera.focal_length_px), "image_size": [camera.width, camera.height]}
        position = list(frame.camera_position)
        document["nodes"].append({"name": "photograph", "camera": 0, "translation": position, "extras": extras})
        document["cameras"] = [{"type": "perspective", "perspective": perspective}]
    if views:  # glTF has no empty accessors: a splat of no Gaussians is a node without a mesh.
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

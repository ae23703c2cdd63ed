"""Folders of posed images in the layout of nerfstudio: `transforms.json`, images, and depth maps if there are any."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sharp_cog.depth import files
from sharp_cog.errors import DepthError, ImageError, InputError
from sharp_cog.evaluation.cases import Case, Pixels, TrueView
from sharp_cog.files.read import read_bytes
from sharp_cog.imaging import images
from sharp_cog.preview.view import View

NAME = "transforms.json"
"""File that describes the folder."""
DEPTH_UNIT = 1e-3
"""Unit of depth maps in the unit of the poses, unless the file says otherwise: nerfstudio's millimetres."""
_DISTORTIONS = ("k1", "k2", "k3", "k4", "p1", "p2")
_POSITIVE = ("w", "h", "fl_x", "fl_y", "depth_unit_scale_factor")
_MODELS = ("PINHOLE", "OPENCV", "SIMPLE_PINHOLE")
_FLIP = np.diag([1.0, -1.0, -1.0, 1.0])
"""OpenGL's camera axes (x right, y up, z backward) in those of OpenCV."""
_ORTHOGONAL = 1e-3
"""Largest error of a pose's rotation."""

Matrix = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    """An image with its pinhole camera; `camera_to_world` has OpenCV's axes."""

    path: Path
    depth_path: Path | None
    width: int
    height: int
    focal_x: float
    focal_y: float
    centre_x: float
    centre_y: float
    camera_to_world: Matrix


def read(folder: Path, *, source: str | None = None, max_views: int, width: int) -> Case:
    """Read a folder.

    Args:
        folder: Folder with `transforms.json`, or that file.
        source: Name or path of the image to predict from, as the file says it; None takes the first one.
        max_views: Maximum number of other images to compare with, spread evenly over all of them.
        width: Maximum width of the compared images in pixels.

    Raises:
        InputError: The description is broken, or needs what a pinhole camera is not.
        ImageError: The photograph cannot be read.
        DepthError: Its depth map cannot be read.
    """
    path = folder / NAME if folder.is_dir() else folder
    try:
        about = json.loads(read_bytes(path, InputError))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error})") from None
    if not isinstance(about, dict) or not isinstance(about.get("frames"), list) or len(about["frames"]) < 2:
        raise InputError(f"{path} has no list 'frames' of at least two images: give the layout of nerfstudio")
    frames = [_frame(path, about, number) for number in range(len(about["frames"]))]
    chosen = _source(path, frames, source)
    photograph = frames[chosen]
    others = [frame for number, frame in enumerate(frames) if number != chosen]
    spread = np.linspace(0, len(others) - 1, min(max_views, len(others))).round().astype(int)
    picked = [others[index] for index in spread]
    rgb = images.decode(read_bytes(photograph.path, ImageError)).rgb
    _check_size(photograph, rgb)
    unit = _number(path, about, {}, "depth_unit_scale_factor", default=DEPTH_UNIT)
    return Case(
        name=photograph.path.name,
        image=rgb,
        focal_length_px=photograph.focal_x,
        depth=None if photograph.depth_path is None else _depth(photograph.depth_path, unit),
        views=tuple(_true_view(frame, photograph, width) for frame in (photograph, *picked)),
    )


def _frame(path: Path, about: Mapping[str, Any], index: int) -> _Frame:
    frame = about["frames"][index]
    where = f"{path}, frame {index}"
    if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
        raise InputError(f"{where} has no 'file_path'")
    model = frame.get("camera_model", about.get("camera_model", "OPENCV"))
    if model not in _MODELS:
        raise InputError(f"{where} has the camera model {model!r}: undistort the images to pinhole cameras")
    for name in _DISTORTIONS:
        if _number(where, about, frame, name, default=0.0):
            raise InputError(f"{where} has the lens distortion {name}: undistort the images first")
    size = {name: _number(where, about, frame, name) for name in ("w", "h")}
    angle = _number(where, about, frame, "camera_angle_x", default=0.0)
    by_angle = size["w"] / 2 / math.tan(angle / 2) if 0 < angle < math.pi else None
    focal_x = _number(where, about, frame, "fl_x", default=by_angle)
    pose = np.array(frame.get("transform_matrix"), dtype=object)
    try:
        camera_to_world = pose.astype(np.float64)
    except (TypeError, ValueError):
        camera_to_world = np.zeros(0)
    if camera_to_world.shape == (3, 4):
        camera_to_world = np.vstack([camera_to_world, [0, 0, 0, 1]])
    if camera_to_world.shape != (4, 4) or not np.isfinite(camera_to_world).all():
        raise InputError(f"{where} has no 'transform_matrix' of 4 x 4 numbers")
    rotation = camera_to_world[:3, :3]
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=_ORTHOGONAL) or np.linalg.det(rotation) < 0:
        raise InputError(f"{where} has a 'transform_matrix' that is no rotation and shift")
    depth_path = frame.get("depth_file_path")
    file_path = path.parent / frame["file_path"]
    return _Frame(
        # NeRF's synthetic scenes leave the suffix out.
        path=file_path if file_path.suffix else file_path.with_suffix(".png"),
        depth_path=path.parent / depth_path if isinstance(depth_path, str) else None,
        width=int(size["w"]),
        height=int(size["h"]),
        focal_x=focal_x,
        focal_y=_number(where, about, frame, "fl_y", default=focal_x),
        centre_x=_number(where, about, frame, "cx", default=size["w"] / 2),
        centre_y=_number(where, about, frame, "cy", default=size["h"] / 2),
        camera_to_world=camera_to_world @ _FLIP,
    )


def _number(
    where: object, about: Mapping[str, Any], frame: Mapping[str, Any], name: str, *, default: float | None = None
) -> float:
    """Return a number of the frame, else of the whole file, else the default."""
    value = frame.get(name, about.get(name, default))
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{where} has {value!r} for '{name}': give a number")
    if value <= 0 and name in _POSITIVE:
        raise InputError(f"{where} has {value!r} for '{name}': give a positive number")
    return float(value)


def _source(path: Path, frames: list[_Frame], source: str | None) -> int:
    if source is None:
        return 0
    found = [index for index, frame in enumerate(frames) if source in (frame.path.name, _relative(frame.path, path))]
    if len(found) != 1:
        raise InputError(f"{path} has {len(found)} images with the name {source!r}: give the file_path of one")
    return found[0]


def _relative(image: Path, description: Path) -> str:
    """Return the path of an image as the description has it."""
    return image.relative_to(description.parent).as_posix() if image.is_relative_to(description.parent) else str(image)


def _check_size(frame: _Frame, rgb: Pixels) -> None:
    height, width = rgb.shape[:2]
    if (width, height) != (frame.width, frame.height):
        raise InputError(
            f"{frame.path} has {width}x{height} pixels, but its camera {frame.width}x{frame.height}: the focal length "
            "would be wrong"
        )


def _depth(path: Path, unit: float) -> NDArray[np.float32]:
    values = np.asarray(files.read(read_bytes(path, DepthError)).values, dtype=np.float32) * np.float32(unit)
    return np.where(np.isfinite(values) & (values > 0), values, np.nan)


def _true_view(frame: _Frame, photograph: _Frame, width: int) -> TrueView:
    scale = min(1.0, width / frame.width)
    size = (max(1, round(frame.width * scale)), max(1, round(frame.height * scale)))
    world_to_camera = np.linalg.inv(frame.camera_to_world) @ photograph.camera_to_world @ _from_centred(photograph)
    return TrueView(
        name=frame.path.name,
        view=View(
            width=size[0],
            height=size[1],
            focal_length_px=frame.focal_x * size[0] / frame.width,
            world_to_camera=np.linalg.inv(_from_centred(frame)) @ world_to_camera,
        ),
        truth=partial(_load, frame, size),
    )


def _from_centred(frame: _Frame) -> Matrix:
    """Return the map from points of a camera with square pixels and a centred principal point to those of a frame.

    Both see a point in the same pixel. With it, any pinhole camera is a matrix and a centred camera with `focal_x`.
    """
    matrix = np.eye(4)
    matrix[0, 2] = (frame.width / 2 - frame.centre_x) / frame.focal_x
    matrix[1, 1] = frame.focal_x / frame.focal_y
    matrix[1, 2] = (frame.height / 2 - frame.centre_y) / frame.focal_y
    return matrix


def _load(frame: _Frame, size: tuple[int, int]) -> Pixels:
    rgb = images.decode(read_bytes(frame.path, ImageError)).rgb
    _check_size(frame, rgb)
    if size == (frame.width, frame.height):
        return rgb
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BOX))

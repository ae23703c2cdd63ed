"""A ray tracer for analytic shapes, whose images and depth maps are exact from every camera.

Surfaces are matte and light has no bounces, so that an image is free of noise and a view from elsewhere shows the same
colours, as those of a splat without spherical harmonics.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sharp_cog.evaluation.shapes import Floats, Shape, Texture, unit
from sharp_cog.preview.view import View

_RUN = 8
"""Number of shapes that share a bounding sphere."""
_TILE = 32
"""Side in pixels of a tile of an image."""
_CONTRAST = 6.0
"""Difference of neighbouring pixels, in 8-bit sRGB, from which on both are sampled more densely."""
_SAMPLES = 3
"""Rays along a side of such a pixel; an odd number, so that the middle one goes through its centre."""
_START_M = 1e-4
"""Distance from a surface at which the rays to the lights start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Light:
    """A light without extent.

    Attributes:
        position_m: Position, or direction to the light if it is infinitely far away.
        color: Linear RGB on a surface that faces the light, one metre away from it or at any distance if it is far.
        is_far: Whether the light is infinitely far away.
    """

    position_m: tuple[float, float, float]
    color: tuple[float, float, float]
    is_far: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A scene to trace. The camera of its photograph is at the origin and looks along +z.

    Attributes:
        name: Name of the scene.
        shapes: Surfaces.
        lights: Lights.
        above: Linear RGB of the light that all the sky or ceiling gives to a surface that faces up.
        below: The same for a surface that faces down.
        sky: Linear RGB for unit directions of rays that meet no shape.
        focal_length_share: Focal length relative to the width of the image.
        exposure: Factor on the light before it is developed.
    """

    name: str
    shapes: tuple[Shape, ...]
    lights: tuple[Light, ...]
    above: tuple[float, float, float]
    below: tuple[float, float, float]
    sky: Texture
    focal_length_share: float
    exposure: float = 1.0

    def view(self, width: int, *, position_m: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> View:
        """Return the view of a camera at a position, which looks along +z; its image has the aspect 3 : 2."""
        pose = np.eye(4)
        pose[:3, 3] = -np.array(position_m)
        return View(
            width=width,
            height=width * 2 // 3,
            focal_length_px=width * self.focal_length_share,
            world_to_camera=pose,
        )


def trace(shapes: Sequence[Shape], origin: Floats, direction: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Return the distance to the first surface along each ray, and the index of its shape (-1 for none)."""
    nearest = np.full(len(origin), np.inf)
    which = np.full(len(origin), -1)
    for rays, members in _near(shapes, origin, direction):
        for index in members:
            distance = shapes[index].hit(origin[rays], direction[rays])
            closer = distance < nearest[rays]
            nearest[rays[closer]] = distance[closer]
            which[rays[closer]] = index
    return nearest, which


def _near(shapes: Sequence[Shape], origin: Floats, direction: Floats) -> Iterator[tuple[NDArray[np.int64], list[int]]]:
    """Yield pairs of rays and shapes that may meet: small shapes next to each other share a bounding sphere."""
    every = np.arange(len(origin))
    for first in range(0, len(shapes), _RUN):
        members = list(range(first, min(first + _RUN, len(shapes))))
        bounds = [shapes[index].bounds() for index in members]
        large = [index for index, bound in zip(members, bounds, strict=True) if bound is None]
        if large:
            yield every, large
        small = [(index, bound) for index, bound in zip(members, bounds, strict=True) if bound is not None]
        if small:
            centre = np.mean([bound[0] for _, bound in small], axis=0)
            radius = max(float(np.linalg.norm(bound[0] - centre)) + bound[1] for _, bound in small)
            offset = centre - origin
            along = (offset * direction).sum(1) / (direction * direction).sum(1)
            miss = offset - along[:, None] * direction
            yield np.flatnonzero((miss * miss).sum(1) <= radius * radius), [index for index, _ in small]


class _Bounds:
    """Bounding spheres of shapes, to find those that a bundle of rays may meet."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        bounds = [shape.bounds() for shape in shapes]
        self._centres = np.array([np.zeros(3) if bound is None else bound[0] for bound in bounds])
        # A sphere of infinite size is near every ray.
        self._radii = np.array([np.inf if bound is None else bound[1] for bound in bounds])

    def near(self, start: Floats, direction: Floats, length: float, radius: float) -> NDArray[np.int64]:
        """Return the shapes within `radius` of a line from `start` along a unit direction, in their order."""
        along = np.clip((self._centres - start) @ direction, 0.0, length)
        miss = np.linalg.norm(self._centres - start - along[:, None] * direction, axis=1)
        return np.flatnonzero(miss <= self._radii + radius)

    def in_cone(self, apex: Floats, direction: Floats, angle: float) -> NDArray[np.int64]:
        """Return the shapes that a cone around a unit direction may meet, in their order."""
        offset = self._centres - apex
        distance = np.linalg.norm(offset, axis=1)
        size = np.where(distance > self._radii, np.arcsin(np.minimum(self._radii / np.maximum(distance, 1e-9), 1)), 4)
        off_axis = np.arccos(np.clip(offset @ direction / np.maximum(distance, 1e-9), -1, 1))
        return np.flatnonzero(off_axis <= size + angle)


def render_depth(scene: Scene, view: View) -> Floats:
    """Return the depth in metres along the optical axis at the centres of pixels, (height, width); infinite for sky."""
    return _Tracer(scene, view).centres()[1]


def render_image(scene: Scene, view: View) -> NDArray[np.uint8]:
    """Return the sRGB image of a view, (height, width, 3), antialiased where neighbouring pixels differ."""
    tracer = _Tracer(scene, view)
    linear, depth_m = tracer.centres()
    image = _develop(linear, scene.exposure)
    # Adaptive supersampling (Whitted, 1980): a pixel that differs from a neighbour is the mean of 3 x 3 rays.
    rough = _differs(image.astype(np.float64), _CONTRAST) | _differs(np.log(np.minimum(depth_m, 1e6))[..., None], 0.02)
    rows, columns = np.nonzero(rough)
    offsets = (np.arange(_SAMPLES) - _SAMPLES // 2) / _SAMPLES
    total = np.zeros((len(rows), 3))
    for down in offsets:
        for across in offsets:
            total += tracer.rays(rows + down, columns + across)[0]
    linear[rows, columns] = total / _SAMPLES**2
    return _develop(linear, scene.exposure)


def _develop(linear: Floats, exposure: float) -> NDArray[np.uint8]:
    """Convert to 8-bit sRGB, with a soft limit of the highlights."""
    toned = 1 - np.exp(-exposure * linear)
    srgb = np.where(toned <= 0.0031308, 12.92 * toned, 1.055 * toned ** (1 / 2.4) - 0.055)
    pixels: NDArray[np.uint8] = np.round(255 * srgb).astype(np.uint8)
    return pixels


def _differs(values: Floats, threshold: float) -> NDArray[np.bool_]:
    """Return whether a pixel of (height, width, channels) differs from one of its four neighbours."""
    mask = np.zeros(values.shape[:2], dtype=np.bool_)
    across = (np.abs(np.diff(values, axis=1)) > threshold).any(axis=-1)
    down = (np.abs(np.diff(values, axis=0)) > threshold).any(axis=-1)
    mask[:, 1:] |= across
    mask[:, :-1] |= across
    mask[1:] |= down
    mask[:-1] |= down
    return mask


class _Tracer:
    """Traces rays of one view, in tiles of pixels, each with the few shapes that it may meet."""

    def __init__(self, scene: Scene, view: View) -> None:
        self._scene, self._view = scene, view
        self._bounds = _Bounds(scene.shapes)

    def centres(self) -> tuple[Floats, Floats]:
        """Return linear RGB (height, width, 3) and depth (height, width) of the rays through the centres of pixels."""
        shape = (self._view.height, self._view.width)
        rows, columns = (grid.ravel().astype(np.float64) for grid in np.indices(shape))
        color, depth_m = self.rays(rows, columns)
        return color.reshape(*shape, 3), depth_m.reshape(shape)

    def rays(self, rows: Floats, columns: Floats) -> tuple[Floats, Floats]:
        """Return linear RGB (n, 3) and depth (n,) at places in pixels, where 0 is the centre of the first pixel."""
        color, depth_m = np.zeros((len(rows), 3)), np.zeros(len(rows))
        tiles = (np.round(rows) // _TILE) * (self._view.width // _TILE + 1) + np.round(columns) // _TILE
        order = np.argsort(tiles, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(tiles[order])) + 1) if len(order) else []

        def fill(places: NDArray[np.int64]) -> None:
            color[places], depth_m[places] = self._tile(rows[places], columns[places])

        with ThreadPoolExecutor(os.cpu_count()) as executor:
            for _ in executor.map(fill, groups):
                pass
        return color, depth_m

    def _tile(self, rows: Floats, columns: Floats) -> tuple[Floats, Floats]:
        scene, view = self._scene, self._view
        x = (columns + 0.5 - view.width / 2) / view.focal_length_px
        y = (rows + 0.5 - view.height / 2) / view.focal_length_px
        rotation, shift = view.world_to_camera[:3, :3], view.world_to_camera[:3, 3]
        direction = np.stack([x, y, np.ones_like(x)], axis=1) @ rotation
        eye = -shift @ rotation
        unit_direction = unit(direction)
        axis = unit(unit_direction.mean(axis=0))
        angle = math.acos(min(1.0, float((unit_direction @ axis).min())))
        shapes = [scene.shapes[index] for index in self._bounds.in_cone(eye, axis, angle)]
        origin = np.broadcast_to(eye, direction.shape)
        # The third component of a ray is 1 in the camera's frame, so the distance in units of the ray is the depth.
        depth_m, which = np.full(len(direction), np.inf), np.full(len(direction), -1)
        for index, shape in enumerate(shapes):
            hit = shape.hit(origin, direction)
            closer = hit < depth_m
            depth_m[closer], which[closer] = hit[closer], index
        seen = which >= 0
        color = np.zeros_like(direction)
        color[~seen] = scene.sky(unit_direction[~seen])
        if seen.any():
            points = eye + depth_m[seen, None] * direction[seen]
            color[seen] = _shade(scene, self._bounds, shapes, points, direction[seen], which[seen])
        return color, depth_m


def _shade(
    scene: Scene, bounds: _Bounds, shapes: list[Shape], points: Floats, view: Floats, which: NDArray[np.int64]
) -> Floats:
    normals, albedo, glow = np.zeros_like(points), np.zeros_like(points), np.zeros((len(points), 1))
    for index in np.unique(which):
        mine = which == index
        normals[mine] = shapes[index].normal(points[mine])
        albedo[mine] = shapes[index].color(points[mine])
        glow[mine] = shapes[index].glow
    normals *= -np.sign((normals * view).sum(1, keepdims=True))
    start = points + _START_M * normals
    upward = 0.5 - 0.5 * normals[:, 1:2]
    light = np.array(scene.above) * upward + np.array(scene.below) * (1 - upward) + glow
    centre = (start.min(axis=0) + start.max(axis=0)) / 2
    radius = float(np.linalg.norm(start - centre, axis=1).max())
    for lamp in scene.lights:
        offset = np.array(lamp.position_m) - (0 if lamp.is_far else start)
        length = np.broadcast_to(np.linalg.norm(offset, axis=-1, keepdims=True), (len(start), 1))
        toward = np.broadcast_to(offset / length, start.shape)
        facing = np.maximum((normals * toward).sum(1, keepdims=True), 0)
        lit = np.flatnonzero(facing[:, 0] > 0)
        if not len(lit):
            continue
        if lamp.is_far:
            limit, axis, reach = np.full(len(lit), np.inf), toward[0], np.inf
        else:
            limit = length[lit, 0]
            axis = np.array(lamp.position_m) - centre
            reach = float(np.linalg.norm(axis))
            axis = axis / reach
        # Shapes that glow are the lamp itself.
        blockers = [scene.shapes[index] for index in bounds.near(centre, axis, reach, radius)]
        for shape in blockers:
            if shape.glow or not len(lit):
                continue
            is_free = shape.hit(start[lit], toward[lit]) >= limit
            lit, limit = lit[is_free], limit[is_free]
        falloff = 1.0 if lamp.is_far else np.maximum(length[lit], 0.2) ** 2
        light[lit] += facing[lit] * np.array(lamp.color) / falloff
    return albedo * light

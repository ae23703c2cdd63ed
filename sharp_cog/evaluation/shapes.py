"""Shapes of the traced scenes: their intersections with rays, and their normals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Texture = Callable[[Floats], Floats]
"""Function from points (n, 3) to linear RGB (n, 3)."""


Point = tuple[float, float, float]
"""A place in metres."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A surface: distances along rays (infinite without a hit), and normals and colours at points."""

    color: Texture
    shine: float = 0.0
    glow: float = 0.0

    def hit(self, origin: Floats, direction: Floats) -> Floats:
        raise NotImplementedError

    def normal(self, points: Floats) -> Floats:
        raise NotImplementedError

    def bounds(self) -> tuple[Floats, float] | None:
        """Return centre and radius of a bounding sphere; None for a wall."""
        return None


@dataclass(frozen=True, kw_only=True)
class Plane(Shape):
    """The plane axis = offset, seen from the side of `facing` (+1 or -1 along the axis).

    It ends at `within`, the lowest and the highest corner of a box, unless that is None, and has a hole at `window`:
    lowest and highest y, then z.
    """

    axis: int
    offset: float
    facing: float
    within: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
    window: tuple[float, float, float, float] | None = None

    def hit(self, origin: Floats, direction: Floats) -> Floats:
        distance = (self.offset - origin[:, self.axis]) / _nonzero(direction[:, self.axis])
        point = origin + distance[:, None] * direction
        is_hit = distance > 1e-6
        if self.within is not None:
            low, high = np.array(self.within)
            is_hit &= (point > low - 1e-6).all(axis=1) & (point < high + 1e-6).all(axis=1)
        if self.window is not None:
            y0, y1, z0, z1 = self.window
            is_hit &= ~((point[:, 1] > y0) & (point[:, 1] < y1) & (point[:, 2] > z0) & (point[:, 2] < z1))
        return np.where(is_hit, distance, np.inf)

    def normal(self, points: Floats) -> Floats:
        normals = np.zeros_like(points)
        normals[:, self.axis] = self.facing
        return normals


@dataclass(frozen=True, kw_only=True)
class Box(Shape):
    """A box, rotated about the vertical axis."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    turn_degrees: float = 0.0

    def _local(self, vectors: Floats) -> Floats:
        angle = math.radians(self.turn_degrees)
        cosine, sine = math.cos(angle), math.sin(angle)
        x, y, z = vectors.T
        return np.stack([cosine * x - sine * z, y, sine * x + cosine * z], axis=1)

    def _world(self, vectors: Floats) -> Floats:
        angle = math.radians(self.turn_degrees)
        cosine, sine = math.cos(angle), math.sin(angle)
        x, y, z = vectors.T
        return np.stack([cosine * x + sine * z, y, -sine * x + cosine * z], axis=1)

    def hit(self, origin: Floats, direction: Floats) -> Floats:
        start, along = self._local(origin - self.centre), _nonzero(self._local(direction))
        first, second = (-np.array(self.half) - start) / along, (np.array(self.half) - start) / along
        near, far = np.minimum(first, second).max(axis=1), np.maximum(first, second).min(axis=1)
        return np.where((near <= far) & (near > 1e-6), near, np.inf)

    def normal(self, points: Floats) -> Floats:
        local = self._local(points - self.centre) / np.array(self.half)
        axis = np.abs(local).argmax(axis=1)
        normals = np.zeros_like(points)
        rows = np.arange(len(points))
        normals[rows, axis] = np.sign(local[rows, axis])
        return self._world(normals)

    def bounds(self) -> tuple[Floats, float]:
        return np.array(self.centre), float(np.linalg.norm(self.half))


@dataclass(frozen=True, kw_only=True)
class Ellipsoid(Shape):
    """An ellipsoid whose axes are those of the room."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]

    def hit(self, origin: Floats, direction: Floats) -> Floats:
        start, along = (origin - self.centre) / self.radii, direction / self.radii
        a, b, c = (along * along).sum(1), (start * along).sum(1), (start * start).sum(1) - 1
        root = np.sqrt(np.maximum(b * b - a * c, 0))
        distance = (-b - root) / a
        return np.where((b * b > a * c) & (distance > 1e-6), distance, np.inf)

    def normal(self, points: Floats) -> Floats:
        return unit((points - self.centre) / np.square(self.radii))

    def bounds(self) -> tuple[Floats, float]:
        return np.array(self.centre), max(self.radii)


@dataclass(frozen=True, kw_only=True)
class Rod(Shape):
    """A cone frustum without ends, such as a leg, a stem or a lampshade."""

    start: tuple[float, float, float]
    end: tuple[float, float, float]
    radius: float
    end_radius: float

    def _axis(self) -> tuple[Floats, float, float]:
        axis = np.subtract(self.end, self.start)
        length = float(np.linalg.norm(axis))
        return axis / length, length, (self.end_radius - self.radius) / length

    def hit(self, origin: Floats, direction: Floats) -> Floats:
        axis, length, slope = self._axis()
        offset = origin - self.start
        along, height = direction @ axis, offset @ axis
        side, flat = direction - along[:, None] * axis, offset - height[:, None] * axis
        # |flat + t side|^2 = (radius + slope (height + t along))^2
        width = self.radius + slope * height
        a = (side * side).sum(1) - (slope * along) ** 2
        b = (side * flat).sum(1) - slope * along * width
        c = (flat * flat).sum(1) - width**2
        root = np.sqrt(np.maximum(b * b - a * c, 0))
        best = np.full(len(origin), np.inf)
        for sign in (-1, 1):
            distance = (-b + sign * root) / _nonzero(a)
            at = height + distance * along
            valid = (b * b > a * c) & (distance > 1e-6) & (at >= 0) & (at <= length)
            best = np.where(valid & (distance < best), distance, best)
        return best

    def normal(self, points: Floats) -> Floats:
        axis, _, slope = self._axis()
        offset = points - self.start
        flat = offset - (offset @ axis)[:, None] * axis
        return unit(unit(flat) - slope * axis)

    def bounds(self) -> tuple[Floats, float]:
        centre = (np.array(self.start) + np.array(self.end)) / 2
        return centre, float(np.linalg.norm(centre - self.start)) + max(self.radius, self.end_radius)


def _nonzero(values: Floats) -> Floats:
    return np.where(np.abs(values) < 1e-12, 1e-12, values)


def unit(vectors: Floats) -> Floats:
    """Return the vectors (n, 3), normalised."""
    lengths: Floats = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)


def as_point(vector: Floats) -> Point:
    """Return a vector (3,) as a tuple."""
    return float(vector[0]), float(vector[1]), float(vector[2])

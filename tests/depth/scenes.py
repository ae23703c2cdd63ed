"""Exact depth of small scenes, traced from planes and spheres, and the kinds of maps that tools make of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HEIGHT, WIDTH = 120, 160
EXAMPLE = Path(__file__).parents[2] / "examples" / "room.depth.png"

Values = NDArray[np.float64]


def rays(*, pitch: float = 0.0, yaw: float = 0.0, focal_length_px: float = 150.0) -> Values:
    """Return (height, width, 3) directions in the world's axes (y down) with a depth of 1 each."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    directions = np.stack([(x - WIDTH / 2) / focal_length_px, (y - HEIGHT / 2) / focal_length_px, x * 0 + 1], axis=-1)
    tilt = np.array([[1, 0, 0], [0, np.cos(pitch), np.sin(pitch)], [0, -np.sin(pitch), np.cos(pitch)]])
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    rotated: Values = directions @ (turn @ tilt).T
    return rotated


def plane(directions: Values, normal: tuple[float, float, float], distance: float) -> Values:
    with np.errstate(divide="ignore"):
        depth = distance / (directions @ np.array(normal))
    in_front: Values = np.where(depth > 0, depth, np.inf)
    return in_front


def sphere(directions: Values, centre: tuple[float, float, float], radius: float) -> Values:
    squared, along = (directions**2).sum(axis=-1), directions @ np.array(centre)
    inside = along**2 - squared * (np.dot(centre, centre) - radius**2)
    depth: Values = np.where(inside > 0, (along - np.sqrt(np.maximum(inside, 0))) / squared, np.inf)
    return depth


def nearest(*surfaces: Values) -> Values:
    depth: Values = np.minimum.reduce(surfaces)
    return depth


def beyond(depth: Values) -> Values:
    """Return the depth with a sky beyond a kilometre."""
    with_sky: Values = np.where(depth > 1000, np.inf, depth)
    return with_sky


def room(*, pitch: float = 0.1, yaw: float = 0.4) -> Values:
    to = rays(pitch=pitch, yaw=yaw)
    walls = [plane(to, normal, 2.0) for normal in ((1, 0, 0), (-1, 0, 0))] + [plane(to, (0, 0, 1), 5.5)]
    floor, ceiling = plane(to, (0, 1, 0), 1.4), plane(to, (0, -1, 0), 1.2)
    return nearest(*walls, floor, ceiling, sphere(to, (0.5, 1.0, 2.5), 0.4))


def street() -> Values:
    to = rays(pitch=0.02)
    ground = plane(to, (0, 1, 0), 1.6)
    facade = plane(to, (1, 0, 0), 5.0)
    facade = np.where(to[..., 1] * facade > -6, facade, np.inf)  # Nine metres high; the sky is above.
    return beyond(nearest(ground, facade, sphere(to, (-2.0, 0.7, 8.0), 0.9)))


def field() -> Values:
    to = rays(pitch=0.05)
    depth = np.minimum(plane(to, (0, 1, 0), 1.7), sphere(to, (0.0, 60.0, 120.0), 80.0))
    return beyond(depth)


def table() -> Values:
    to = rays(pitch=0.5)
    wall = plane(to, (0, 0, 1), 0.8)
    return nearest(plane(to, (0, 1, 0), 0.3), wall, sphere(to, (0.0, 0.22, 0.42), 0.07))


def portrait(behind: Values | float) -> Values:
    to = rays()
    return nearest(np.broadcast_to(behind, (HEIGHT, WIDTH)), sphere(to, (0, 0, 1.2), 0.16))


def looking_up() -> Values:
    return room(pitch=-0.5)


def example() -> Values:
    return np.asarray(Image.open(EXAMPLE))[::6, ::6] / 1000.0


SCENES: dict[str, Callable[[], Values]] = {
    "room": room,
    "street": street,
    "field": field,
    "table": table,
    "portrait before a wall": lambda: portrait(3.0),
    "portrait before a field": lambda: portrait(field()),
    "looking up": looking_up,
    "example": example,
}
CLEAR = ("room", "street", "field", "table", "portrait before a field", "example")
"""Scenes with surfaces that reveal what the numbers are."""


def noisy(depth: Values, noise: float) -> Values:
    """Return the depth with noise of a fraction of it."""
    noisy_depth: Values = depth * np.exp(noise * np.random.default_rng(0).normal(size=depth.shape))
    return noisy_depth


def metric_kinds(depth: Values) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Return the kinds of metric maps that do not name themselves, with the name of each."""
    yield "float32, infinite sky", depth.astype(np.float32)
    yield "float32, sky at 10 km", np.minimum(depth, 1e4).astype(np.float32)
    yield "float32, clipped at 80 m", np.minimum(depth, 80).astype(np.float32)
    yield "float32, sky at 1e10", np.where(np.isinf(depth), 1e10, depth).astype(np.float32)
    yield "float16", depth.astype(np.float16)
    yield "millimetres", np.where(depth < 60, np.minimum(depth, 60) * 1000, 0).astype(np.uint16)


def disparity_kinds(depth: Values) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Return the kinds of disparity maps, with the name of each."""
    disparity = 1 / depth
    for scale in (0.01, 1, 10, 255):
        yield f"disparity times {scale}", (disparity * scale).astype(np.float32)
    yield "disparity with a shift", (disparity * 3 + 0.05).astype(np.float32)
    yield "disparity with a floor", np.maximum(disparity * 30, 0.05).astype(np.float32)
    unit = (disparity - disparity.min()) / (disparity.max() - disparity.min())
    yield "disparity from 0 to 1", unit.astype(np.float32)
    yield "disparity from 0 to 255", (unit * 255).astype(np.float32)
    yield "disparity of 16 bits", (unit * 65535).astype(np.uint16)
    yield "disparity of 8 bits", (unit * 255).astype(np.uint8)


def relative_kinds(depth: Values) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Return the kinds of relative maps, near is 0, with the name of each."""
    far = np.quantile(depth[np.isfinite(depth)], 0.98)
    unit = (np.minimum(depth, far) - depth.min()) / (far - depth.min())
    yield "relative from 0 to 1", unit.astype(np.float32)
    yield "relative of 16 bits", (unit * 65535).astype(np.uint16)

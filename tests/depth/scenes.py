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


def box(to: Values, low: tuple[float, ...], high: tuple[float, ...]) -> Values:
    """Return the depth of an upright box between two corners, by slabs."""
    with np.errstate(divide="ignore"):
        ends = np.stack([np.array(corner) / to for corner in (low, high)])
    enter, leave = ends.min(axis=0).max(axis=-1), ends.max(axis=0).min(axis=-1)
    depth: Values = np.where((enter <= leave) & (enter > 0), enter, np.inf)
    return depth


def inside(to: Values, centre: tuple[float, float, float], radius: float) -> Values:
    """Return the depth of a sphere from within."""
    squared, along = (to**2).sum(axis=-1), to @ np.array(centre)
    depth: Values = (along + np.sqrt(along**2 - squared * (np.dot(centre, centre) - radius**2))) / squared
    return depth


def stairs() -> Values:
    to = rays(pitch=0.25)
    steps = [box(to, (-1.5, 1.5 - 0.18 * step, 2 + 0.3 * step), (1.5, 9, 9)) for step in range(12)]
    return nearest(*steps, plane(to, (0, 0, 1), 7.0), plane(to, (0, 1, 0), 1.6))


def forest() -> Values:
    to = rays(pitch=0.05)
    random = np.random.default_rng(3)
    trunks = [
        box(to, (x - r, -9, z - r), (x + r, 9, z + r))
        for x, z, r in zip(
            random.uniform(-6, 6, 25), random.uniform(3, 20, 25), random.uniform(0.1, 0.3, 25), strict=True
        )
    ]
    return beyond(nearest(plane(to, (0, 1, 0), 1.6), *trunks))


def crowd() -> Values:
    """Heads before a far, curved background: no plane at all."""
    to = rays()
    random = np.random.default_rng(4)
    places = zip(random.uniform(-1.5, 1.5, 12), random.uniform(-0.5, 0.8, 12), random.uniform(1.5, 5, 12), strict=True)
    return nearest(inside(to, (0, 0, 0), 9.0), *(sphere(to, (x, y, z), 0.22) for x, y, z in places))


def hills() -> Values:
    to = rays(pitch=0.1)
    domes = [sphere(to, (x, y, z), r) for x, y, z, r in ((-40, 50, 60, 47), (30, 45, 90, 40), (0, 60, 35, 57))]
    return beyond(nearest(inside(to, (0, 0, 0), 400.0), *domes))


def bowl() -> Values:
    return inside(rays(pitch=0.6), (0, 0, 0.2), 0.9)


def from_above() -> Values:
    to = rays(pitch=np.pi / 2 - 0.02)
    random = np.random.default_rng(5)
    roofs = [
        box(to, (x, 60 - h, z), (x + 14, 99, z + 10))
        for x, z, h in zip(
            random.uniform(-40, 30, 9), random.uniform(-30, 20, 9), random.uniform(4, 15, 9), strict=True
        )
    ]
    return nearest(plane(to, (0, 1, 0), 60.0), *roofs)


def corridor() -> Values:
    to = rays()
    walls = [plane(to, normal, 1.0) for normal in ((1, 0, 0), (-1, 0, 0))]
    return nearest(*walls, plane(to, (0, 1, 0), 1.5), plane(to, (0, -1, 0), 1.0), plane(to, (0, 0, 1), 15.0))


def shelf() -> Values:
    to = rays()
    random = np.random.default_rng(6)
    books = [
        box(to, (x, -2, z), (x + 0.08, 2, 3))
        for x, z in zip(np.arange(-1, 1, 0.1), random.uniform(1.2, 1.5, 20), strict=True)
    ]
    return nearest(plane(to, (0, 0, 1), 1.55), *books)


def branch() -> Values:
    """Leaves near the top before a garden: near is up."""
    to = rays(pitch=0.05)
    random = np.random.default_rng(7)
    leaves = [
        sphere(to, (x, y, z), 0.08)
        for x, y, z in zip(
            random.uniform(-0.6, 0.6, 40), random.uniform(-0.5, -0.2, 40), random.uniform(0.7, 1.2, 40), strict=True
        )
    ]
    return beyond(nearest(plane(to, (0, 1, 0), 1.6), *leaves))


def sea() -> Values:
    return beyond(plane(rays(pitch=0.02), (0, 1, 0), 8.0))


def under_a_roof() -> Values:
    to = rays(pitch=-0.35)
    return beyond(nearest(plane(to, (0, -1, 0), 1.2), plane(to, (1, 0, 0), 3.0)))


def tilted_boxes() -> Values:
    to = rays(pitch=0.5, yaw=0.7)
    random = np.random.default_rng(8)
    corners = zip(random.uniform(-1, 1, 8), random.uniform(0.2, 0.8, 8), random.uniform(1.5, 3, 8), strict=True)
    return nearest(plane(to, (0, 1, 0), 1.2), *(box(to, (x, y, z), (x + 0.5, 9, z + 0.5)) for x, y, z in corners))


OTHER_SCENES: dict[str, Callable[[], Values]] = {
    "stairs": stairs,
    "forest": forest,
    "crowd": crowd,
    "hills": hills,
    "bowl": bowl,
    "from above": from_above,
    "corridor": corridor,
    "shelf": shelf,
    "branch": branch,
    "sea": sea,
    "under a roof": under_a_roof,
    "tilted boxes": tilted_boxes,
}
"""Scenes of other kinds than those by which the limits of the evidence were chosen."""


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
    yield "disparity of stereo cameras, times 256", np.minimum(256 * 60 * disparity, 65535).astype(np.uint16)
    yield "disparity of 8 bits", (unit * 255).astype(np.uint8)


def relative_kinds(depth: Values) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Return the kinds of relative maps, near is 0, with the name of each."""
    far = np.quantile(depth[np.isfinite(depth)], 0.98)
    unit = (np.minimum(depth, far) - depth.min()) / (far - depth.min())
    yield "relative from 0 to 1", unit.astype(np.float32)
    yield "relative of 16 bits", (unit * 65535).astype(np.uint16)

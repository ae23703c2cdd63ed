"""The traced scenes: a room, a garden below the sky, a portrait with loose hair, and a street with poles and wires."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from sharp_cog.evaluation.room import LEFT_X, WINDOW, build_room
from sharp_cog.evaluation.shapes import Box, Ellipsoid, Floats, Plane, Point, Rod, Shape, Texture, as_point
from sharp_cog.evaluation.textures import cell_noise, cloud, noise, plain
from sharp_cog.evaluation.trace import Light, Scene


def _rod(start: Point, end: Point, radius: float, color: Texture) -> Rod:
    """Return a rod of the same radius at both ends."""
    return Rod(start=start, end=end, radius=radius, end_radius=radius, color=color)


def _share(focal_length_mm: float) -> float:
    """Return a 35 mm-equivalent focal length relative to the width of an image of 3 : 2."""
    return focal_length_mm / 36.0


def room() -> Scene:
    """Return the room of the example, lit by the sun and its window, without the noise of soft light."""
    y0, y1, z0, z1 = WINDOW
    return Scene(
        name="room",
        shapes=tuple(build_room()),
        lights=(
            Light(position_m=(-0.80, -0.47, -0.16), color=(2.6, 2.2, 1.6)),
            Light(position_m=(LEFT_X + 0.15, (y0 + y1) / 2, (z0 + z1) / 2), color=(1.4, 1.6, 1.9), is_far=False),
            Light(position_m=(0.3, -1.2, 1.2), color=(1.5, 1.45, 1.35), is_far=False),
        ),
        above=(0.42, 0.42, 0.44),
        below=(0.40, 0.34, 0.28),
        sky=lambda direction: np.tile([2.2, 2.6, 3.2], (len(direction), 1)),
        focal_length_share=_share(28.0),
    )


def _sky(direction: Floats) -> Floats:
    """Return a blue sky with clouds, which grow pale towards the horizon."""
    height = np.maximum(-direction[:, 1], 0.0)
    place = direction[:, [0, 2]] / (height[:, None] + 0.12)
    clouds = np.clip(2.6 * cloud(place * 1.3 + 5.0) - 1.15, 0, 1)[:, None]
    blue = np.array([0.28, 0.55, 1.15]) + np.exp(-6 * height)[:, None] * np.array([0.75, 0.65, 0.35])
    color: Floats = blue + clouds * (np.array([1.7, 1.7, 1.75]) - blue)
    return color


_SUN = Light(position_m=(-0.55, -0.75, -0.35), color=(1.9, 1.7, 1.35))


def _grass(points: Floats) -> Floats:
    patches = cloud(points[:, [0, 2]] * 0.8)
    blades = noise(points[:, [0, 2]] * 45)
    path = np.abs(points[:, 0] - 0.4 * np.sin(points[:, 2] * 0.5) - 0.2) < 0.45
    green = np.array([0.10, 0.22, 0.04]) * (0.5 + patches + 0.5 * blades)[:, None]
    gravel = np.array([0.46, 0.40, 0.32]) * (0.75 + 0.5 * noise(points[:, [0, 2]] * 30))[:, None]
    color: Floats = np.where(path[:, None], gravel, green)
    return color


def _leaves(points: Floats) -> Floats:
    speckles = noise(points[:, :2] * 30 + points[:, 2:] * 17)
    color: Floats = np.array([0.09, 0.20, 0.05]) * (0.4 + 0.9 * speckles + 0.5 * cloud(points[:, :2] * 4))[:, None]
    return color


def _bark(points: Floats) -> Floats:
    rough = cloud(np.stack([np.arctan2(points[:, 2], points[:, 0]) * 30, points[:, 1] * 5], axis=1))
    color: Floats = np.array([0.20, 0.13, 0.08]) * (0.5 + rough)[:, None]
    return color


def garden() -> Scene:
    """Return a lawn with trees, a fence and flowers below a cloudy sky."""
    rng = np.random.default_rng(3)
    ground = 1.5
    shapes: list[Shape] = [Plane(axis=1, offset=ground, facing=-1, color=_grass)]
    # Hills at the horizon.
    for left, ahead, wide, high in ((-30, 80, 45, 9), (25, 95, 55, 12), (70, 70, 30, 7)):
        shapes.append(
            Ellipsoid(centre=(left, ground, ahead), radii=(wide, high, 12), color=plain(0.12, 0.20, 0.12, size=3.0))
        )
    for x, z, tall in ((-2.2, 6.5, 2.6), (2.9, 9.0, 3.2), (-5.5, 14.0, 3.6), (0.9, 18.0, 3.4), (8.0, 17.0, 4.0)):
        shapes.append(
            Rod(start=(x, ground, z), end=(x + 0.1, ground - tall, z), radius=0.16, end_radius=0.08, color=_bark)
        )
        for _ in range(14):
            offset = rng.normal(scale=(0.7, 0.45, 0.6))
            size = rng.uniform(0.35, 0.7)
            centre = (x + offset[0], ground - tall - 0.3 + offset[1], z + offset[2])
            shapes.append(Ellipsoid(centre=centre, radii=(size, 0.75 * size, size), color=_leaves))
    # A fence from the left front to the right back.
    white = plain(0.75, 0.73, 0.68)
    for step in range(15):
        x, z = -2.6 + 0.38 * step, 4.0 + 0.16 * step
        shapes.append(Box(centre=(x, ground - 0.42, z), half=(0.045, 0.42, 0.012), turn_degrees=-23, color=white))
    shapes += [_rod((-2.7, y, 4.0), (2.8, y, 6.3), 0.025, white) for y in (ground - 0.25, ground - 0.62)]
    # Flowers in front: stems of 8 mm, and blossoms.
    for _ in range(26):
        x, z = rng.uniform(-1.5, 1.6), rng.uniform(2.1, 3.2)
        tall = rng.uniform(0.35, 0.75)
        top = (x + rng.uniform(-0.08, 0.08), ground - tall, z)
        shapes.append(_rod((x, ground, z), top, 0.004, plain(0.12, 0.28, 0.06)))
        tone = [(0.75, 0.10, 0.12), (0.85, 0.62, 0.08), (0.62, 0.20, 0.62)][rng.integers(3)]
        shapes.append(Ellipsoid(centre=top, radii=(0.045, 0.030, 0.045), color=plain(*tone, grain=0.2)))
    return Scene(
        name="garden",
        shapes=tuple(shapes),
        lights=(_SUN,),
        above=(0.62, 0.72, 0.92),
        below=(0.20, 0.24, 0.12),
        sky=_sky,
        focal_length_share=_share(30.0),
        exposure=1.1,
    )


def _books(points: Floats) -> Floats:
    """Return the colours of a wall of shelves with the backs of books."""
    shelf = np.floor(points[:, 1] / 0.32)
    across = points[:, 0] / 0.045 + 3 * cell_noise(shelf[:, None])
    book = np.stack([np.floor(across), shelf], axis=1)
    tone = cell_noise(book)
    palette = np.array(
        [[0.32, 0.08, 0.06], [0.07, 0.16, 0.25], [0.50, 0.42, 0.28], [0.10, 0.20, 0.10], [0.22, 0.17, 0.25]]
    )
    color = palette[(tone * 5).astype(int)] * (0.6 + 0.7 * cell_noise(book + 7.0))[:, None]
    height = np.mod(points[:, 1], 0.32) / 0.32
    color = np.where((np.mod(across, 1) < 0.08)[:, None], color * 0.35, color)
    color = np.where((height < 0.12 + 0.15 * tone)[:, None], [0.035, 0.03, 0.028], color)
    shelved: Floats = np.where((height > 0.93)[:, None], [0.24, 0.14, 0.08], color)
    return shelved


def _skin(points: Floats) -> Floats:
    flush = cloud(points[:, :2] * 14)
    color: Floats = np.array([0.62, 0.36, 0.25]) * (0.85 + 0.25 * flush)[:, None]
    return color


def _knit(points: Floats) -> Floats:
    stitches = 0.75 + 0.25 * np.sin(points[:, 0] * 420 + np.sin(points[:, 1] * 260))
    rows = np.where(np.mod(points[:, 1], 0.09) < 0.03, 1.0, 0.0)[:, None]
    color: Floats = (np.array([0.12, 0.16, 0.30]) + rows * np.array([0.45, 0.38, 0.20])) * stitches[:, None]
    return color


def portrait() -> Scene:
    """Return a head and shoulders at 0.9 m, with loose hair of 1 to 3 mm and spectacles, in front of shelves."""
    rng = np.random.default_rng(11)
    hair = plain(0.16, 0.085, 0.04, grain=0.3, size=0.004)
    dark = plain(0.03, 0.03, 0.035)
    x, y, z = 0.02, -0.02, 0.92
    shapes: list[Shape] = [
        Plane(axis=2, offset=2.6, facing=-1, color=_books),
        Plane(axis=1, offset=1.1, facing=-1, color=plain(0.30, 0.22, 0.16, size=0.1)),
        Ellipsoid(centre=(x, y, z), radii=(0.078, 0.108, 0.095), color=_skin),
        Ellipsoid(centre=(x, y - 0.03, z + 0.03), radii=(0.092, 0.105, 0.095), color=hair),
        Rod(start=(x, y + 0.06, z + 0.02), end=(x, y + 0.22, z + 0.03), radius=0.05, end_radius=0.058, color=_skin),
        Ellipsoid(centre=(x, y + 0.34, z + 0.03), radii=(0.235, 0.14, 0.11), color=_knit),
        Ellipsoid(centre=(x, y + 0.012, z - 0.095), radii=(0.014, 0.024, 0.018), color=_skin),
        Ellipsoid(centre=(x, y + 0.055, z - 0.082), radii=(0.024, 0.008, 0.010), color=plain(0.55, 0.16, 0.14)),
    ]
    for side in (-1, 1):
        eye = (x + 0.031 * side, y - 0.016, z - 0.082)
        shapes.append(Ellipsoid(centre=eye, radii=(0.013, 0.009, 0.010), color=plain(0.80, 0.78, 0.74)))
        shapes.append(
            Ellipsoid(centre=(eye[0], eye[1], eye[2] - 0.008), radii=(0.006, 0.006, 0.004), color=plain(0.12, 0.2, 0.2))
        )
        # A rim of spectacles from 16 short rods, and its temple.
        ring = [
            (eye[0] + 0.026 * math.cos(turn), eye[1] + 0.021 * math.sin(turn), z - 0.108)
            for turn in np.linspace(0, 2 * math.pi, 17)
        ]
        for start, end in itertools.pairwise(ring):
            shapes.append(_rod(start, end, 0.0016, dark))
        temple = (x + 0.086 * side, y - 0.02, z - 0.01)
        shapes.append(_rod((eye[0] + 0.026 * side, eye[1], z - 0.108), temple, 0.0016, dark))
    bridge = [(x + 0.0055 * side, y - 0.018, z - 0.110) for side in (-1, 1)]
    shapes.append(_rod(bridge[0], bridge[1], 0.0016, dark))
    # Locks and single hairs that stand off the head.
    for number in range(60):
        turn = rng.uniform(0.0, math.pi) if number < 46 else rng.choice([-0.35, math.pi + 0.35])
        root = np.array([x - 0.09 * math.cos(turn), y - 0.03 - 0.10 * math.sin(turn), z + rng.uniform(-0.01, 0.06)])
        outward = np.array([-math.cos(turn), -math.sin(turn), rng.uniform(-0.2, 0.2)])
        length, droop = rng.uniform(0.02, 0.085), rng.uniform(0.01, 0.05)
        joints = [
            root + outward * length * share + np.array([0.0, droop, 0.0]) * share**2 for share in (-0.2, 0.3, 0.65, 1)
        ]
        radius = rng.uniform(0.0005, 0.0014)
        for first, second in itertools.pairwise(joints):
            shapes.append(_rod(as_point(first), as_point(second), radius, hair))
    return Scene(
        name="portrait",
        shapes=tuple(shapes),
        lights=(
            Light(position_m=(-0.7, -0.55, -0.6), color=(1.0, 0.95, 0.88)),
            Light(position_m=(0.8, -0.5, 0.1), color=(0.35, 0.38, 0.45)),
        ),
        above=(0.50, 0.50, 0.52),
        below=(0.36, 0.33, 0.30),
        sky=lambda direction: np.tile([0.3, 0.3, 0.3], (len(direction), 1)),
        focal_length_share=_share(50.0),
        exposure=1.2,
    )


def _road(points: Floats) -> Floats:
    asphalt = (
        np.array([0.16, 0.16, 0.17])
        * (0.7 + 0.4 * noise(points[:, [0, 2]] * 60) + 0.3 * cloud(points[:, [0, 2]]))[:, None]
    )
    dashes = (np.abs(points[:, 0] - 0.3) < 0.07) & (np.mod(points[:, 2], 3.0) < 1.6)
    line = (np.abs(points[:, 0] + 2.3) < 0.06) | (np.abs(points[:, 0] - 2.9) < 0.06)
    color: Floats = np.where((dashes | line)[:, None], [0.72, 0.72, 0.68], asphalt)
    return color


def _facade(wall: tuple[float, float, float]) -> Callable[[Floats], Floats]:
    """Return a texture of bricks with rows of windows, for walls along z or x."""

    def texture(points: Floats) -> Floats:
        along = points[:, 0] + points[:, 2]
        row = np.floor(points[:, 1] / 0.085)
        brick = np.stack([np.floor((along + 0.13 * np.mod(row, 2)) / 0.26), row], axis=1)
        color = np.array(wall) * (0.75 + 0.45 * cell_noise(brick))[:, None]
        mortar = (np.mod(points[:, 1], 0.085) < 0.014) | (np.mod(along + 0.13 * np.mod(row, 2), 0.26) < 0.014)
        color = np.where(mortar[:, None], [0.42, 0.40, 0.37], color)
        u, v = np.mod(along, 2.2) / 2.2 - 0.5, np.mod(points[:, 1] + 0.4, 2.6) / 2.6 - 0.5
        frame, glass = (np.abs(u) < 0.27) & (np.abs(v) < 0.31), (np.abs(u) < 0.23) & (np.abs(v) < 0.28)
        color = np.where(frame[:, None], [0.70, 0.69, 0.66], color)
        pane = glass & (np.abs(u) > 0.015) & (np.abs(v + 0.05) > 0.012)
        shown: Floats = np.where(pane[:, None], np.array([0.07, 0.10, 0.14]) * (1.4 - v)[:, None], color)
        return shown

    return texture


def street() -> Scene:
    """Return a street between houses, with lamp posts, traffic signs, wires, and a parked car."""
    ground = 1.55
    pavement = plain(0.40, 0.39, 0.37, grain=0.15, size=0.3)
    steel, red, white = plain(0.22, 0.23, 0.24), plain(0.60, 0.05, 0.05), plain(0.75, 0.75, 0.73)
    shapes: list[Shape] = [
        Plane(axis=1, offset=ground, facing=-1, color=_road),
        Box(centre=(-4.2, ground - 0.06, 30.0), half=(1.6, 0.07, 30.0), color=pavement),
        Box(centre=(4.8, ground - 0.06, 30.0), half=(1.6, 0.07, 30.0), color=pavement),
    ]
    tones = [(0.40, 0.17, 0.12), (0.52, 0.45, 0.34), (0.33, 0.30, 0.28), (0.45, 0.30, 0.20)]
    for side, x in ((0, -8.6), (1, 9.2)):
        front = 2.0
        for number in range(6):
            depth, height = (
                (5.5, 6.5, 4.5, 7.0, 6.0, 8.0)[(number + 3 * side) % 6],
                (3.4, 4.6, 3.9, 5.2)[(number + side) % 4],
            )
            centre = (x + 0.25 * ((number + side) % 2), ground - height, front + depth / 2)
            shapes.append(
                Box(centre=centre, half=(2.9, height, depth / 2 - 0.02), color=_facade(tones[(number + side) % 4]))
            )
            front += depth
    # A house across the end of the street.
    shapes.append(Box(centre=(0.0, ground - 4.0, 46.0), half=(12.0, 4.0, 2.0), color=_facade(tones[1])))
    for x, z in ((-2.75, 5.0), (3.35, 8.0), (-2.75, 13.0), (3.35, 17.0), (-2.75, 24.0)):
        side = 1 if x < 0 else -1
        shapes += [
            Rod(start=(x, ground, z), end=(x, ground - 4.6, z), radius=0.055, end_radius=0.04, color=steel),
            _rod((x, ground - 4.6, z), (x + 0.9 * side, ground - 4.75, z), 0.03, steel),
            Ellipsoid(centre=(x + 0.95 * side, ground - 4.72, z), radii=(0.22, 0.06, 0.10), color=white),
        ]
    # Traffic signs in front, on poles of 5 cm.
    for x, z, tone in ((1.9, 3.4, red), (-1.75, 4.1, white)):
        shapes += [
            _rod((x, ground, z), (x, ground - 2.1, z), 0.025, steel),
            _rod((x, ground - 2.0, z - 0.03), (x, ground - 2.0, z - 0.05), 0.26, tone),
            Ellipsoid(centre=(x, ground - 2.0, z - 0.045), radii=(0.26, 0.26, 0.012), color=tone),
            Box(centre=(x, ground - 2.0, z - 0.06), half=(0.17, 0.04, 0.004), color=white if tone is red else red),
        ]
    for y in (-3.35, -3.1):
        shapes.append(_rod((-2.7, y, 4.0), (3.4, y + 0.1, 30.0), 0.012, steel))
        shapes.append(_rod((-6.0, y, 11.0), (6.6, y, 12.0), 0.012, steel))
    # A parked car.
    paint, glass, tyre = plain(0.06, 0.20, 0.34, grain=0.03), plain(0.05, 0.06, 0.07), plain(0.03, 0.03, 0.03)
    shapes += [
        Box(centre=(2.0, ground - 0.55, 7.4), half=(0.82, 0.30, 2.0), color=paint),
        Ellipsoid(centre=(2.0, ground - 0.85, 7.5), radii=(0.76, 0.58, 1.35), color=glass),
        Box(centre=(2.0, ground - 0.52, 5.38), half=(0.70, 0.07, 0.03), color=white),
    ]
    for x in (1.2, 2.8):
        for z in (6.1, 8.7):
            shapes.append(Ellipsoid(centre=(x, ground - 0.31, z), radii=(0.12, 0.31, 0.31), color=tyre))
    return Scene(
        name="street",
        shapes=tuple(shapes),
        lights=(Light(position_m=(-0.35, -0.85, -0.4), color=(1.8, 1.65, 1.35)),),
        above=(0.62, 0.70, 0.88),
        below=(0.24, 0.23, 0.22),
        sky=_sky,
        focal_length_share=_share(28.0),
        exposure=1.1,
    )


SCENES: dict[str, Callable[[], Scene]] = {"room": room, "garden": garden, "portrait": portrait, "street": street}
"""Functions that build the traced scenes, by their names."""

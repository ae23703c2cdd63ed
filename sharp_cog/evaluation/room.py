"""The furniture of the example room, and its materials."""

from __future__ import annotations

import itertools
import math

import numpy as np

from sharp_cog.evaluation.shapes import Box, Ellipsoid, Floats, Plane, Rod, Shape, as_point
from sharp_cog.evaluation.textures import cell_noise, cloud, noise, plain

# The planes of the room, in metres.
FLOOR_Y = 1.15
CEILING_Y = -1.45
LEFT_X = -2.1
RIGHT_X = 2.3
BACK_Z = 5.2
BEHIND_Z = -1.0
CORNERS = ((LEFT_X, CEILING_Y, BEHIND_Z), (RIGHT_X, FLOOR_Y, BACK_Z))
"""Corners of the room: rays through the window must not hit a wall outside."""
WINDOW = (-0.75, 0.35, 2.3, 3.9)
"""Extent of the opening in the left wall: lowest and highest y, then z."""
LAMP = np.array([1.62, -0.42, 4.35])
"""Position of the lamp's bulb."""


def planks(points: Floats) -> Floats:
    """Return the colours of an oak floor: boards along z with joints, grain and different shades."""
    width, length = 0.14, 1.3
    row = np.floor(points[:, 0] / width)
    z = points[:, 2] + length * cell_noise(row[:, None])
    board = np.stack([row, np.floor(z / length)], axis=1)
    tone = cell_noise(board)
    grain = cloud(np.stack([points[:, 0] * 55 + 30 * tone, points[:, 2] * 3.5 + 9 * tone], axis=1))
    rings = 0.5 + 0.5 * np.sin(60 * (points[:, 0] + 0.05 * grain) + 40 * tone + 6 * grain)
    across, ahead = np.mod(points[:, 0], width), np.mod(z, length)
    joint = (across < 0.004) | (ahead < 0.004)
    shade = (0.72 + 0.4 * tone) * (0.78 + 0.3 * grain + 0.08 * rings) * np.where(joint, 0.35, 1.0)
    return np.array([0.40, 0.235, 0.125]) * shade[:, None]


def wood(points: Floats) -> Floats:
    """Return the colours of walnut."""
    grain = cloud(np.stack([points[:, 0] * 9 + points[:, 1] * 40, points[:, 2] * 34 + points[:, 1] * 10], axis=1))
    return np.array([0.20, 0.105, 0.055]) * (0.6 + 0.9 * grain)[:, None]


def rug(points: Floats) -> Floats:
    """Return the colours of a woven rug with a border and diamonds."""
    x, z = points[:, 0] - 0.05, points[:, 2] - 3.1
    edge = np.maximum(np.abs(x) / 1.15, np.abs(z) / 0.85)
    along, across = (np.abs(x) + np.abs(z)) / 0.27, (np.abs(x) - np.abs(z)) / 0.27
    color = _mix(np.array([0.36, 0.10, 0.07]), [0.43, 0.22, 0.14], _soft(np.cos(math.pi * along), 0.25))
    color = _mix(color, [0.21, 0.11, 0.11], _soft(np.cos(math.pi * across) - 0.75, 0.12))
    color = _mix(color, [0.46, 0.33, 0.24], _soft(0.03 - np.abs(edge - 0.87), 0.01))
    color = _mix(color, [0.17, 0.11, 0.12], _soft(edge - 0.9, 0.01))
    weave = 0.92 + 0.10 * noise(points[:, [0, 2]] * 240) + 0.08 * cloud(points[:, [0, 2]] * 14)
    woven: Floats = color * weave[:, None]
    return woven


def _soft(value: Floats, width: float) -> Floats:
    """Return a smooth step (n, 1) from 0 to 1 as the value goes from minus to plus `width`."""
    share = np.clip(0.5 + 0.5 * value / width, 0, 1)
    step: Floats = (share * share * (3 - 2 * share))[:, None]
    return step


def _mix(color: Floats, other: list[float], share: Floats) -> Floats:
    mixed: Floats = color + (np.array(other) - color) * share
    return mixed


def wall(points: Floats) -> Floats:
    """Return the colours of plaster, which is slightly uneven."""
    uneven = cloud(points[:, [0, 1]] * 3 + points[:, [2, 2]] * 2.3)
    fine = noise(points[:, [0, 1]] * 130 + points[:, [2, 2]] * 97)
    return np.array([0.60, 0.575, 0.52]) * (0.93 + 0.08 * uneven + 0.035 * fine)[:, None]


def painting(points: Floats) -> Floats:
    """Return the colours of a small landscape: sky, hills and water."""
    u, v = (points[:, 0] + 0.42) / 0.5, (points[:, 1] + 0.36) / 0.36
    ridge = -0.1 + 0.35 * (cloud(np.stack([u * 1.7 + 4, np.zeros_like(u)], axis=1)) - 0.5)
    nearer = 0.25 + 0.3 * (cloud(np.stack([u * 2.3 + 11, np.ones_like(u)], axis=1)) - 0.5)
    color = np.array([0.75, 0.52, 0.32]) + (v[:, None] + 0.4) * np.array([-0.30, -0.18, 0.12])
    color = np.where((v > ridge)[:, None], [0.13, 0.20, 0.26], color)
    color = np.where((v > nearer)[:, None], [0.10, 0.16, 0.08], color)
    water = 0.6 + 0.5 * noise(np.stack([u * 4, v * 60], axis=1))
    color = np.where((v > 0.62)[:, None], np.array([0.30, 0.27, 0.24]) * water[:, None], color)
    framed: Floats = np.clip(color, 0.02, 1) * (0.85 + 0.3 * cloud(points[:, :2] * 40))[:, None]
    return framed


def stripes(points: Floats) -> Floats:
    """Return the colours of a ceramic glaze in bands."""
    bands = np.mod(points[:, 1] * 26 + 0.4 * noise(points[:, [0, 2]] * 20), 2.0)
    base = np.where((bands < 1.0)[:, None], [0.05, 0.14, 0.22], [0.62, 0.60, 0.54])
    glazed: Floats = base * (0.9 + 0.2 * cloud(points[:, :2] * 60))[:, None]
    return glazed


def ball(points: Floats) -> Floats:
    """Return the colours of a ball with six segments."""
    angle = np.arctan2(points[:, 2] - 2.75, points[:, 0] + 0.86)
    segment = np.floor(np.mod(angle / math.pi * 3 + points[:, 1] * 0.6, 6)).astype(int)
    colors = np.array([[0.70, 0.06, 0.05], [0.75, 0.72, 0.66], [0.06, 0.20, 0.50]] * 2)
    color: Floats = colors[segment] * (0.92 + 0.12 * noise(points[:, :2] * 70))[:, None]
    return color


def garden(points: Floats) -> Floats:
    """Return the colours of the view outside: a hedge below a bright sky."""
    leaves = cloud(points[:, [2, 1]] * 2.5)
    hedge = np.array([0.10, 0.22, 0.05]) * (0.4 + 1.5 * leaves)[:, None]
    is_hedge = points[:, 1] > -0.5 + 0.8 * (cloud(points[:, [2, 2]] * 0.9) - 0.5)
    color: Floats = np.where(is_hedge[:, None], hedge, [0.85, 0.97, 1.15])
    return color


def build_room() -> list[Shape]:
    """Return all shapes of the scene."""
    white, steel = plain(0.72, 0.70, 0.66), plain(0.10, 0.10, 0.105)
    shapes: list[Shape] = [
        Plane(axis=1, offset=FLOOR_Y, within=CORNERS, facing=-1, color=planks, shine=0.18),
        Plane(axis=1, offset=CEILING_Y, within=CORNERS, facing=1, color=plain(0.68, 0.67, 0.64, grain=0.02)),
        Plane(axis=0, offset=LEFT_X, within=CORNERS, facing=1, color=wall, window=WINDOW),
        Plane(axis=0, offset=RIGHT_X, within=CORNERS, facing=-1, color=wall),
        Plane(axis=2, offset=BACK_Z, within=CORNERS, facing=-1, color=wall),
        Plane(axis=2, offset=BEHIND_Z, within=CORNERS, facing=1, color=wall),
        Box(centre=(0.05, FLOOR_Y - 0.006, 3.1), half=(1.15, 0.006, 0.85), color=rug),
        Box(centre=(0.1, FLOOR_Y - 0.05, BACK_Z - 0.01), half=(2.2, 0.05, 0.01), color=white),
        # A painting on the wall.
        Box(centre=(-0.42, -0.36, BACK_Z - 0.02), half=(0.56, 0.42, 0.02), color=wood, shine=0.1),
        Box(centre=(-0.42, -0.36, BACK_Z - 0.03), half=(0.5, 0.36, 0.025), color=painting),
    ]
    shapes.append(Box(centre=(LEFT_X - 6.0, 0.0, 9.0), half=(0.1, 9.0, 16.0), color=garden, glow=2.0))
    y0, y1, z0, z1 = WINDOW
    middle_y, middle_z = (y0 + y1) / 2, (z0 + z1) / 2
    across, upright = (0.04, 0.025, (z1 - z0) / 2 + 0.03), (0.04, (y1 - y0) / 2 + 0.03, 0.025)
    shapes += [Box(centre=(LEFT_X, y, middle_z), half=across, color=white) for y in (y0, middle_y, y1)]
    shapes += [Box(centre=(LEFT_X, middle_y, z), half=upright, color=white) for z in (z0, middle_z, z1)]
    shapes.append(Box(centre=(LEFT_X + 0.08, y1 + 0.04, middle_z), half=(0.12, 0.018, 0.9), color=white))
    # A low table with books.
    shapes.append(Box(centre=(0.25, 0.66, 3.2), half=(0.62, 0.022, 0.36), turn_degrees=8, color=wood, shine=0.25))
    for x, z in ((-0.29, 2.95), (0.71, 2.82), (-0.20, 3.60), (0.79, 3.46)):
        foot = (x + 0.05 * np.sign(x - 0.25), FLOOR_Y, z)
        shapes.append(Rod(start=(x, 0.68, z), end=foot, radius=0.020, end_radius=0.012, color=wood))
    for level, (turn, tone) in enumerate(((14, (0.33, 0.07, 0.05)), (3, (0.05, 0.17, 0.20)), (-9, (0.55, 0.42, 0.18)))):
        y, half_x = 0.62 - 0.036 * level, 0.15 - 0.012 * level
        shapes.append(Box(centre=(0.62, y, 3.15), half=(half_x, 0.018, 0.105), turn_degrees=turn, color=plain(*tone)))
        shapes.append(
            Box(centre=(0.623, y, 3.147), half=(half_x - 0.002, 0.0145, 0.1065), turn_degrees=turn, color=white)
        )
    # A vase with branches.
    shapes += [
        Rod(
            start=(0.12, 0.638, 3.22), end=(0.12, 0.50, 3.22), radius=0.055, end_radius=0.098, color=stripes, shine=0.5
        ),
        Rod(start=(0.12, 0.50, 3.22), end=(0.12, 0.38, 3.22), radius=0.098, end_radius=0.042, color=stripes, shine=0.5),
        Rod(start=(0.12, 0.38, 3.22), end=(0.12, 0.34, 3.22), radius=0.042, end_radius=0.056, color=stripes, shine=0.5),
    ]
    rng = np.random.default_rng(7)
    leaf, bark = plain(0.075, 0.165, 0.05, grain=0.2), plain(0.14, 0.09, 0.05)
    for branch in range(7):
        angle, lean, height = branch * 2.4, rng.uniform(0.08, 0.24), rng.uniform(0.36, 0.62)
        joints = [np.array([0.12, 0.40, 3.22])]
        for step in range(1, 4):
            share = step / 3
            offset = np.array([math.cos(angle), 0, math.sin(angle)]) * lean * share**1.4
            joints.append(np.array([0.12, 0.40 - height * share, 3.22]) + offset)
        for start, end in itertools.pairwise(joints):
            shapes.append(Rod(start=as_point(start), end=as_point(end), radius=0.005, end_radius=0.0035, color=bark))
            for side in (-1, 1):
                spread = side * np.array([-math.sin(angle), 0.1, math.cos(angle)]) * rng.uniform(0.03, 0.05)
                radii = (rng.uniform(0.022, 0.034), 0.010, rng.uniform(0.020, 0.03))
                shapes.append(
                    Ellipsoid(centre=as_point((start + end) / 2 + spread), radii=radii, color=leaf, shine=0.15)
                )
    # An armchair at the left, a stool in front at the right.
    cloth, seat = plain(0.13, 0.20, 0.185, grain=0.25, size=0.006), plain(0.42, 0.24, 0.10, grain=0.2)
    shapes += [
        Box(centre=(-1.28, 0.70, 4.1), half=(0.36, 0.11, 0.36), turn_degrees=-28, color=cloth),
        Box(centre=(-1.45, 0.34, 4.36), half=(0.36, 0.34, 0.08), turn_degrees=-28, color=cloth),
        Box(centre=(-1.60, 0.56, 3.95), half=(0.06, 0.10, 0.36), turn_degrees=-28, color=cloth),
        Box(centre=(-0.98, 0.56, 4.27), half=(0.06, 0.10, 0.36), turn_degrees=-28, color=cloth),
        Ellipsoid(centre=(-1.25, 0.46, 4.18), radii=(0.20, 0.17, 0.10), color=plain(0.55, 0.30, 0.07, grain=0.2)),
    ]
    for x, z in ((-1.45, 3.70), (-0.86, 4.02), (-1.72, 4.30), (-1.12, 4.58)):
        shapes.append(Rod(start=(x, 0.80, z), end=(x, FLOOR_Y, z), radius=0.022, end_radius=0.014, color=wood))
    shapes.append(Rod(start=(1.12, 0.50, 2.25), end=(1.12, 0.54, 2.25), radius=0.19, end_radius=0.19, color=seat))
    shapes.append(Ellipsoid(centre=(1.12, 0.50, 2.25), radii=(0.192, 0.018, 0.192), color=seat, shine=0.15))
    for number in range(4):
        angle = math.radians(35 + 90 * number)
        x, z = math.cos(angle), math.sin(angle)
        foot = (1.12 + 0.21 * x, FLOOR_Y, 2.25 + 0.21 * z)
        shapes.append(
            Rod(start=(1.12 + 0.13 * x, 0.53, 2.25 + 0.13 * z), end=foot, radius=0.014, end_radius=0.010, color=steel)
        )
    # A floor lamp: foot, rod, shade, bulb.
    x, y, z = LAMP
    shade = plain(0.80, 0.70, 0.52, grain=0.05)
    shapes += [
        Box(centre=(x, FLOOR_Y - 0.012, z), half=(0.14, 0.012, 0.14), turn_degrees=20, color=steel, shine=0.2),
        Rod(start=(x, FLOOR_Y, z), end=(x, y, z), radius=0.010, end_radius=0.010, color=steel, shine=0.3),
        Rod(start=(x, y + 0.14, z), end=(x, y - 0.14, z), radius=0.20, end_radius=0.13, color=shade, glow=0.75),
    ]
    # A ball and a shelf.
    shapes.append(Ellipsoid(centre=(-0.86, FLOOR_Y - 0.13, 2.75), radii=(0.13, 0.13, 0.13), color=ball, shine=0.35))
    shapes.append(Box(centre=(1.1, -0.18, BACK_Z - 0.11), half=(0.52, 0.016, 0.11), color=wood))
    left = 0.64
    for _ in range(11):
        thick, tall = rng.uniform(0.014, 0.03), rng.uniform(0.10, 0.15)
        tone = np.array([[0.35, 0.08, 0.06], [0.08, 0.16, 0.22], [0.52, 0.45, 0.32], [0.10, 0.18, 0.10]])[
            rng.integers(4)
        ]
        centre = (left + thick, -0.196 - tall, BACK_Z - 0.10)
        shapes.append(
            Box(centre=centre, half=(thick - 0.001, tall, 0.085), color=plain(*(tone * rng.uniform(0.7, 1.3))))
        )
        left += 2 * thick
    shapes.append(Ellipsoid(centre=(1.42, -0.27, BACK_Z - 0.11), radii=(0.075, 0.075, 0.075), color=stripes, shine=0.4))
    return shapes

"""Procedural textures of the traced scenes."""

from __future__ import annotations

import numpy as np

from sharp_cog.evaluation.shapes import Floats, Texture


def cell_noise(cells: Floats) -> Floats:
    """Return reproducible noise in [0, 1) for cells (n, d)."""
    weights = np.array([127.1, 311.7, 74.7])[: cells.shape[1]]
    values: Floats = np.mod(np.abs(np.sin(cells @ weights) * 43758.5453), 1.0)
    return values


def noise(points: Floats) -> Floats:
    """Return smooth noise in [0, 1] at points (n, 2)."""
    cell = np.floor(points)
    fraction = points - cell
    blend = fraction * fraction * (3 - 2 * fraction)
    corners = [cell_noise(cell + np.array(corner)) for corner in ((0, 0), (1, 0), (0, 1), (1, 1))]
    top = corners[0] + (corners[1] - corners[0]) * blend[:, 0]
    bottom = corners[2] + (corners[3] - corners[2]) * blend[:, 0]
    value: Floats = top + (bottom - top) * blend[:, 1]
    return value


def cloud(points: Floats) -> Floats:
    value: Floats = sum((noise(points * 2.0**octave) / 2.0**octave for octave in range(4)), np.zeros(len(points)))
    return value / 1.875


def plain(red: float, green: float, blue: float, *, grain: float = 0.06, size: float = 0.02) -> Texture:
    """Return a texture of one colour with a fine grain."""

    def texture(points: Floats) -> Floats:
        grains = cloud(points[:, :2] / size + points[:, 2:] / size * np.array([0.7, 0.4]))
        return np.array([red, green, blue]) * (1 - grain + 2 * grain * grains)[:, None]

    return texture

"""Renders the example: `room.jpg`, a realistic image, and `room.depth.png`, its exact depth in millimetres.

    python -m examples.make_room [--output-dir examples]

A small ray tracer for analytic shapes: colour and depth of a pixel follow from the same equations, so the depth is
exact. Frame: OpenCV (x right, y down, z forward), metres; the camera is at the origin and looks along +z.
"""

from __future__ import annotations

import argparse
import math
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sharp_cog.evaluation.room import LAMP, LEFT_X, RIGHT_X, WINDOW, build_room
from sharp_cog.evaluation.shapes import Floats, Shape, unit
from sharp_cog.evaluation.trace import trace

WIDTH, HEIGHT = 1200, 800
FOCAL_LENGTH_MM = 28.0
"""Focal length as a 35 mm equivalent."""
FOCAL_LENGTH_SHARE = FOCAL_LENGTH_MM / math.hypot(36, 24)
"""Focal length relative to the image's diagonal, both in pixels."""

SUN_RADIUS = 0.015
"""Angular radius of the sun in radians; three times the real one, for soft shadows."""
LENS_BLUR_PX = 0.6
"""Standard deviation of the blur of a point by the lens and the filter in front of the sensor."""

SUN = np.array([-0.80, -0.47, -0.16]) / np.linalg.norm([-0.80, -0.47, -0.16])
"""Direction to the sun."""
SKY = np.array([0.75, 0.92, 1.25])
"""Linear RGB of the sky."""
SUNLIGHT = np.array([9.0, 7.0, 4.8])
"""Linear RGB of the sun's light on a surface that faces the sun."""
LAMPLIGHT = np.array([1.0, 0.62, 0.30])
"""Linear RGB of the lamp's light."""


def blocked(shapes: list[Shape], origin: Floats, direction: Floats, limit: Floats | float) -> NDArray[np.bool_]:
    """Return whether a surface lies within `limit` along each ray."""
    return trace(shapes, origin, direction)[0] < limit


def radiance(shapes: list[Shape], direction: Floats, rng: np.random.Generator, *, bounces: int = 1) -> Floats:
    """Return the linear RGB along rays from the camera."""
    return _shade(shapes, np.zeros_like(direction), direction, rng, bounces)


def _shade(shapes: list[Shape], origin: Floats, direction: Floats, rng: np.random.Generator, bounces: int) -> Floats:
    distance, which = trace(shapes, origin, direction)
    color = np.tile(SKY * 3.2, (len(direction), 1))
    color *= 1.0 - 0.35 * np.clip(direction[:, 1:2] + 0.2, -1, 1)
    seen = which >= 0
    points = origin[seen] + distance[seen, None] * direction[seen]
    normals, albedo, shine, glow = (np.zeros((seen.sum(), 3)), np.zeros((seen.sum(), 3)), *np.zeros((2, seen.sum(), 1)))
    for index in np.unique(which[seen]):
        mine = which[seen] == index
        normals[mine] = shapes[index].normal(points[mine])
        albedo[mine] = shapes[index].color(points[mine])
        shine[mine], glow[mine] = shapes[index].shine, shapes[index].glow
    view = direction[seen]
    normals *= -np.sign(np.maximum((normals * view).sum(1, keepdims=True), 0) - 0.5)
    start = points + 1e-4 * normals
    light = _direct(shapes, start, normals, rng) + _ambient(shapes, start, normals, rng)
    result = albedo * (light + glow * LAMPLIGHT * 2.2)
    if bounces:
        mirror = view - 2 * (view * normals).sum(1, keepdims=True) * normals
        mirror = unit(mirror + 0.05 * rng.normal(size=mirror.shape))
        facing = 1 - np.abs((view * normals).sum(1, keepdims=True))
        strength = shine * (0.12 + 0.88 * facing**4)
        glossy = strength[:, 0] > 0.01
        if glossy.any():
            reflected = _shade(shapes, start[glossy], mirror[glossy], rng, bounces - 1)
            result[glossy] += strength[glossy] * np.minimum(reflected, 3)
    color[seen] = result
    return color


def _direct(shapes: list[Shape], start: Floats, normals: Floats, rng: np.random.Generator) -> Floats:
    """Return the light of the sun, the sky in the window and the lamp, each sampled by one random ray."""
    sun = unit(SUN + SUN_RADIUS * rng.normal(size=start.shape))
    to_window = (LEFT_X - 0.1 - start[:, 0]) / np.minimum(sun[:, 0], -1e-3)
    facing = np.maximum((normals * sun).sum(1, keepdims=True), 0)
    light = np.where(blocked(shapes, start, sun, to_window)[:, None], 0, facing * SUNLIGHT)
    y0, y1, z0, z1 = WINDOW
    target = np.stack(
        [np.full(len(start), LEFT_X - 0.01), rng.uniform(y0, y1, len(start)), rng.uniform(z0, z1, len(start))], axis=1
    )
    for point, strength, is_area in (
        (target, SKY * 5.0, True),
        (LAMP + 0.06 * rng.normal(size=start.shape), LAMPLIGHT * 0.9, False),
    ):
        offset = point - start
        length = np.linalg.norm(offset, axis=1, keepdims=True)
        toward = offset / length
        facing = np.maximum((normals * toward).sum(1, keepdims=True), 0)
        if is_area:
            facing = facing * np.maximum(-toward[:, :1], 0) * (y1 - y0) * (z1 - z0) / math.pi
        others = shapes if is_area else [shape for shape in shapes if not shape.glow]
        hidden = blocked(others, start, toward, length[:, 0] - 0.1)[:, None]
        light += np.where(hidden, 0, facing * strength / np.maximum(length, 0.2) ** 2)
    return light


def _ambient(shapes: list[Shape], start: Floats, normals: Floats, rng: np.random.Generator) -> Floats:
    """Return the light reflected by the room: warm from the floor, pale from the walls, darker in corners."""
    toward = unit(normals + unit(rng.normal(size=start.shape)) * 0.999)
    distance, _ = trace(shapes, start, toward)
    openness = (np.minimum(distance, 1.4) / 1.4)[:, None] ** 0.8
    from_left = 0.5 - 0.5 * normals[:, :1] * 0.4 + 0.12 * (1 - (start[:, :1] - LEFT_X) / (RIGHT_X - LEFT_X))
    upward = 0.5 + 0.5 * normals[:, 1:2]
    tint = np.array([0.62, 0.62, 0.64]) * (1 - 0.35 * upward) + np.array([0.50, 0.36, 0.24]) * 0.55 * upward
    return tint * openness * from_left * 0.85


def camera_rays(width: int, height: int, columns: Floats, rows: Floats) -> Floats:
    """Return directions with z = 1 through positions in pixels, (n, 3)."""
    focal = FOCAL_LENGTH_SHARE * math.hypot(width, height)
    return np.stack([(columns - width / 2) / focal, (rows - height / 2) / focal, np.ones_like(columns)], axis=1)


def render_depth(width: int, height: int) -> Floats:
    """Return the depth along the optical axis in metres at the centres of the pixels, (height, width)."""
    shapes = build_room()
    rows, columns = (grid.ravel() + 0.5 for grid in np.mgrid[:height, :width].astype(np.float64))
    depth = np.empty(width * height)
    for part in np.array_split(np.arange(len(rows)), max(1, len(rows) // 200_000)):
        rays = camera_rays(width, height, columns[part], rows[part])
        # A ray's z is 1, so the distance in units of the ray is the depth.
        depth[part] = trace(shapes, np.zeros_like(rays), rays)[0]
    return depth.reshape(height, width)


def render_color(width: int, height: int, *, samples: int, seed: int = 0) -> Floats:
    """Return linear RGB, (height, width, 3), from `samples` random rays per pixel, the same for any number of cores."""
    bands = np.array_split(np.arange(height), max(1, width * height // 60_000))
    render = partial(_render_band, width, height, samples, seed)
    with ProcessPoolExecutor() as executor:
        return np.concatenate(list(executor.map(render, bands)))


def _render_band(width: int, height: int, samples: int, seed: int, band: NDArray[np.int64]) -> Floats:
    """Return the rows `band` of the image, (len(band), width, 3)."""
    shapes, rng = build_room(), np.random.default_rng([seed, int(band[0])])
    rows, columns = (
        grid.ravel() for grid in np.meshgrid(band.astype(float), np.arange(width, dtype=float), indexing="ij")
    )
    color, side = np.zeros((len(rows), 3)), math.isqrt(samples)
    for sample in range(side * side):
        jitter = (np.array([[sample % side, sample // side]]) + rng.uniform(size=(len(rows), 2))) / side
        rays = camera_rays(width, height, columns + jitter[:, 0], rows + jitter[:, 1])
        color += np.minimum(radiance(shapes, unit(rays), rng), 6.0)
    return (color / side**2).reshape(len(band), width, 3)


def through_lens(linear: Floats) -> Floats:
    """Blur linear RGB (height, width, 3) by `LENS_BLUR_PX` at the full size, and by less at a smaller one."""
    sigma = LENS_BLUR_PX * linear.shape[1] / WIDTH
    weights = np.exp(-0.5 * (np.arange(-3, 4) / sigma) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        padded = np.pad(linear, [(3, 3) if each == axis else (0, 0) for each in range(3)], mode="edge")
        shifted = (np.take(padded, range(start, start + linear.shape[axis]), axis=axis) for start in range(7))
        linear = sum((weight * part for weight, part in zip(weights, shifted, strict=True)), np.zeros_like(linear))
    return linear


def develop(linear: Floats) -> NDArray[np.uint8]:
    """Convert to 8-bit sRGB, with exposure, a slight vignette, and a soft limit of the highlights."""
    height, width = linear.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    exposed = through_lens(linear) * 1.05 * (1 - 0.16 * ((x * x + y * y) / 2) ** 1.2)[..., None]
    toned = 1 - np.exp(-exposed)
    srgb = np.where(toned <= 0.0031308, 12.92 * toned, 1.055 * toned ** (1 / 2.4) - 0.055)
    pixels: NDArray[np.uint8] = np.round(255 * srgb).astype(np.uint8)
    return pixels


def exif() -> Image.Exif:
    """Return the EXIF block of a camera with a 28 mm-equivalent lens."""
    block = Image.Exif()
    block[0x010F], block[0x0110] = "sharp_cog", "example room"
    block[0x8769] = {0x920A: FOCAL_LENGTH_MM, 0xA405: int(FOCAL_LENGTH_MM)}
    return block


def main() -> None:
    parser = argparse.ArgumentParser(description="Renders examples/room.jpg and examples/room.depth.png.")
    parser.add_argument("--output-dir", type=Path, default=Path(__file__).parent)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--samples", type=int, default=36, help="rays per pixel, a square number")
    arguments = parser.parse_args()
    width, height = arguments.width, arguments.width * HEIGHT // WIDTH
    depth_mm = np.round(render_depth(width, height) * 1000).astype(np.uint16)
    Image.fromarray(depth_mm).save(arguments.output_dir / "room.depth.png", optimize=True)
    pixels = develop(render_color(width, height, samples=arguments.samples))
    Image.fromarray(pixels).save(arguments.output_dir / "room.jpg", quality=88, subsampling=0, exif=exif())


if __name__ == "__main__":
    main()

"""The ray tracer against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sharp_cog.evaluation.scenes import SCENES
from sharp_cog.evaluation.shapes import Ellipsoid, Floats, Plane
from sharp_cog.evaluation.trace import Light, Scene, render_depth, render_image


def grey(points: Floats) -> Floats:
    return np.full((len(points), 3), 0.5)


def ball_on_a_floor(*, lights: tuple[Light, ...] = ()) -> Scene:
    return Scene(
        name="ball",
        shapes=(
            Plane(axis=1, offset=1.0, facing=-1, color=grey),
            Ellipsoid(centre=(0.0, 0.0, 4.0), radii=(0.5, 0.5, 0.5), color=grey),
        ),
        lights=lights,
        above=(0.2, 0.2, 0.2),
        below=(0.2, 0.2, 0.2),
        sky=lambda direction: np.zeros((len(direction), 3)),
        focal_length_share=1.0,
    )


@pytest.mark.parametrize("x_m", [0.0, 0.3])
def test_depth_is_exact_from_every_camera(x_m: float) -> None:
    scene = ball_on_a_floor()
    view = scene.view(90, position_m=(x_m, 0.0, 0.0))
    depth_m = render_depth(scene, view)
    rows, columns = np.mgrid[:60, :90] + 0.5
    x, y = (columns - 45) / 90, (rows - 30) / 90
    with np.errstate(divide="ignore"):
        floor = np.where(y > 0, 1.0 / y, np.inf)
    # |t d - c|^2 = r^2 for the ray t (x, y, 1) and the centre c.
    a, b, c = x * x + y * y + 1, -x * x_m + 4.0, x_m**2 + 16.0 - 0.25
    inside = b * b - a * c
    ball = np.where(inside > 0, (b - np.sqrt(np.maximum(inside, 0))) / a, np.inf)
    np.testing.assert_allclose(depth_m, np.minimum(floor, ball), rtol=1e-9)


def test_a_shadow_falls_where_the_light_says() -> None:
    noon = Light(position_m=(0.0, -1.0, 0.0), color=(2.0, 2.0, 2.0))
    scene = ball_on_a_floor(lights=(noon,))
    image = render_image(scene, scene.view(90))[..., 0].astype(float)
    # The floor below the ball, 4 m ahead, is 30 px + 90 / 4 px below the top; beside it the sun shines.
    assert image[52, 45] < 0.6 * image[52, 80]
    lamp = Light(position_m=(2.0, 0.0, 4.0), color=(4.0, 4.0, 4.0), is_far=False)
    scene = ball_on_a_floor(lights=(lamp,))
    image = render_image(scene, scene.view(90))[..., 0].astype(float)
    # The ball is lit from the right, and hides the lamp from the floor to its left.
    assert image[30, 50] > 1.2 * image[30, 40]


def test_edges_are_antialiased() -> None:
    scene = ball_on_a_floor()
    image = render_image(scene, scene.view(90))
    ball, sky = image[29, 45, 0], image[2, 45, 0]
    row = image[29, 20:45, 0]
    assert ball > 50
    assert sky == 0
    assert ((row > sky) & (row < ball)).sum() == 1
    # 3 x 3 samples: ninths of the light, before the curves of the film.
    radius = 90 * 0.5 / math.sqrt(16 - 0.25)
    assert np.flatnonzero(row > ball / 2)[0] + 20 == pytest.approx(45 - radius, abs=1)


@pytest.mark.parametrize("name", list(SCENES))
def test_scenes_have_depth_edges_and_detail(name: str) -> None:
    scene = SCENES[name]()
    view = scene.view(60)
    depth_m, image = np.minimum(render_depth(scene, view), 100), render_image(scene, view)
    assert 0.5 < depth_m.min() < 5
    assert depth_m.max() > 2.5
    assert (np.abs(np.diff(np.log(depth_m), axis=1)) > 0.1).sum() > 30
    assert image.std() > 25

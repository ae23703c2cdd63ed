"""A case of an evaluation: one photograph, and views from elsewhere with their truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sharp_cog.evaluation.scenes import SCENES
from sharp_cog.evaluation.trace import render_depth, render_image
from sharp_cog.model.external_depth import MAX_DEPTH_M
from sharp_cog.preview.view import View

MOVES_M = {"own": (0.0, 0.0, 0.0), "right": (0.2, 0.0, 0.0), "left": (-0.2, 0.0, 0.0), "up": (0.0, -0.2, 0.0)}
"""Positions of the cameras of a traced scene, in metres from the photograph's own; all look along +z."""
_SOURCE_SCALE = 2
"""Width of a traced photograph, relative to that of the views."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrueView:
    """A view with its truth.

    Attributes:
        name: Name of the view.
        view: Pose relative to the photograph's camera, whose lengths are those of the case, and intrinsics. Other
            intrinsics than a centred principal point and square pixels are part of the matrix.
        truth: Loads the image, (height, width, 3), sRGB.
    """

    name: str
    view: View
    truth: Callable[[], Pixels]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Case:
    """A photograph and its views.

    Attributes:
        name: Name of the case.
        image: (height, width, 3) sRGB.
        focal_length_px: Focal length of the photograph in pixels.
        depth: (height, width), depth in the unit of the poses, NaN where unknown; None if there is none.
        views: Views with their truth.
    """

    name: str
    image: Pixels
    focal_length_px: float
    depth: NDArray[np.float32] | None
    views: tuple[TrueView, ...]


def traced(name: str, *, width: int) -> Case:
    """Return a traced scene, with exact depth.

    Args:
        name: One of `sharp_cog.evaluation.scenes.SCENES`.
        width: Width of the views in pixels.
    """
    scene = SCENES[name]()
    photograph = scene.view(_SOURCE_SCALE * width)

    def true_view(move: str) -> TrueView:
        view = scene.view(width, position_m=MOVES_M[move])
        return TrueView(name=move, view=view, truth=lambda: render_image(scene, view))

    return Case(
        name=name,
        image=render_image(scene, photograph),
        focal_length_px=photograph.focal_length_px,
        depth=np.minimum(render_depth(scene, photograph), MAX_DEPTH_M).astype(np.float32),
        views=tuple(map(true_view, MOVES_M)),
    )

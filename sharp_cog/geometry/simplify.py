"""Simplifying a scene: leave out what cannot be seen, and merge Gaussians until few enough are left."""

from __future__ import annotations

import math

import torch

from sharp_cog.errors import OptionError
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.merge import merge

INVISIBLE_OPACITY = 1.0 / 255.0
"""Opacity below which renderers draw nothing."""


def simplify(gaussians: Gaussians, *, max_gaussians: int | None = None, min_opacity: float = 0.0) -> Gaussians:
    """Drop the Gaussians that are too transparent, then merge neighbours so that the picture stays as it is.

    Args:
        gaussians: Scene with any axes and origin.
        max_gaussians: Maximum number of Gaussians to keep, at least 1; None keeps all.
        min_opacity: Least opacity of the Gaussians to keep. Merged Gaussians may be less opaque.

    Returns:
        The same object if it keeps to both limits. Otherwise the remaining Gaussians: in their original order if none
        was merged, else in that of a space-filling curve.

    Raises:
        OptionError: No Gaussian is as opaque as `min_opacity`.
    """
    # Broken opacities stay, below zero too: writers refuse them, and must not lose them from sight here.
    opaque = _at_least(gaussians, min_opacity) if min_opacity > 0 else gaussians
    if len(gaussians) and not len(opaque):
        # Rounded down, so that the number in the message leaves something.
        most = math.floor(float(gaussians.opacities.max()) * 1000) / 1000
        raise OptionError(
            f"min_opacity is {min_opacity:g}, but the most opaque of the {len(gaussians):,} Gaussians has {most:g}: "
            "give at most that, or nothing is left"
        )
    if max_gaussians is None or len(opaque) <= max_gaussians:
        return opaque
    visible = _at_least(opaque, INVISIBLE_OPACITY)
    return merge(visible if len(visible) else opaque, max_gaussians)


def _at_least(gaussians: Gaussians, opacity: float) -> Gaussians:
    """Return the Gaussians that are at least this opaque, or the same object if all are."""
    kept = torch.nonzero(~(gaussians.opacities < opacity)).squeeze(-1)  # NaN is less than nothing.
    return gaussians if len(kept) == len(gaussians) else gaussians.map(lambda tensor: tensor[kept])

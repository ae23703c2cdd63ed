"""Lift: SHARP's initializer and composer with deltas of zero, on an external depth map. It has no weights."""

from __future__ import annotations

import torch
from torch import Tensor

from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.model.composer import NUM_ATTRIBUTES, compose
from sharp_cog.model.external_depth import DepthUse, prepare
from sharp_cog.model.initializer import initialize


def lift(image: Tensor, depth_m: Tensor, use: DepthUse) -> NDCGaussians:
    """Lift each cell of 2 x 2 pixels to its depth.

    Args:
        image: (B, 3, S, S), RGB in [0, 1].
        depth_m: (B, 1, S, S), metres, known everywhere. Both layers lie there, unless the mode is `fixed`.
        use: Mode, scale and offset of the depth map. There is no monodepth that the map could be fitted to.

    Raises:
        DepthError: The use asks for a fit.
    """
    depth_m = prepare(depth_m, None, use)
    if use.mode == "fixed":
        depth_m = torch.cat([depth_m, depth_m * use.back_surface_factor], dim=1)
    base = initialize(image, depth_m)
    # A single zero, seen in the shape of all deltas: it takes no memory.
    return compose(base, image.new_zeros(()).expand(len(image), NUM_ATTRIBUTES, *base.inverse_z.shape[1:]))

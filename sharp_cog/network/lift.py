"""Lift: the predictor without weights. SHARP's initializer and composer with zero deltas on a given depth map."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sharp_cog.errors import DepthError
from sharp_cog.gaussians import NDCGaussians
from sharp_cog.network.composer import NUM_ATTRIBUTES, compose
from sharp_cog.network.given_depth import DEFAULT_USE, DepthUse, prepared
from sharp_cog.network.initializer import initialize


class Lift(nn.Module):
    """Lifts each pixel to its depth. An honest baseline; it never stands in for SHARP unasked."""

    def forward(
        self,
        image: Tensor,
        disparity_factor: Tensor,
        depth: Tensor | None = None,
        use: DepthUse = DEFAULT_USE,
        on_monodepth: Callable[[Tensor], None] | None = None,
    ) -> NDCGaussians:
        """Places Gaussians on a depth map; the same call as `Sharp`.

        Args:
            image: (B, 3, 1536, 1536), RGB in [0, 1].
            disparity_factor: (B,); not needed, since the depth is metric.
            depth: (B, 1, 1536, 1536), metres, known everywhere; serves both layers, as a ratio of 1.
            use: As for `Sharp`; without depth of its own this model cannot align or fit.
            on_monodepth: None: there is no such depth.

        Raises:
            DepthError: There is no depth map, or it is to be brought to SHARP's own, or that is asked for.
        """
        if on_monodepth is not None:
            raise DepthError("save_internal_depth is given, but the model 'lift' has no own depth: leave it out")
        if depth is None:
            raise DepthError("the model 'lift' needs a depth map: give one (--depth FILE), or choose the model 'sharp'")
        if use.mode == "align":
            raise DepthError("depth_mode is 'align', but the model 'lift' has no own depth: choose ratio or fixed")
        depth = prepared(depth, None, use)
        if use.mode == "fixed":
            depth = torch.cat([depth, depth * use.back_surface_factor], dim=1)
        base = initialize(image, depth)
        return compose(base, image.new_zeros(()).expand(len(image), NUM_ATTRIBUTES, *base.inverse_z.shape[1:]))

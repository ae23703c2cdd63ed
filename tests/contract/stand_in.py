"""A predictor that costs nothing and to which all options matter."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import torch
from torch import Tensor

from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.model.config import IMAGE_SIZE
from sharp_cog.model.external_depth import DEFAULT_USE, DepthUse
from sharp_cog.model.sharp import Encoding, Sharp


def seen(
    image: Tensor,
    factor: Tensor,
    depth: Tensor | None = None,
    use: DepthUse = DEFAULT_USE,
    on_monodepth: Callable[[Tensor], None] | None = None,
) -> NDCGaussians:
    """SHARP but for its weights: its own handling of a depth map, on a slope; one Gaussian for 64 x 64 pixels."""
    disparity = torch.linspace(0.2, 0.6, IMAGE_SIZE).expand(1, 2, IMAGE_SIZE, IMAGE_SIZE)
    disparity = disparity * torch.tensor([1.0, 0.8]).view(1, 2, 1, 1)
    network = cast(Sharp, SimpleNamespace(depth_alignment=lambda own, given: (given / own).mean()))
    encoding = Encoding(disparity=disparity, decoded=image)
    z = Sharp.depth(network, encoding, factor, depth, use, on_monodepth)[:, :, ::64, ::64].flatten()
    place = torch.linspace(-1, 1, len(z))
    turn = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(1, len(z), 4)
    return NDCGaussians(
        means=torch.stack([place * z, place.flip(0) * z, z], dim=1).unsqueeze(0),
        scales=(0.01 * z).view(1, -1, 1).expand(1, -1, 3),
        quaternions_wxyz=turn,
        colors_linear=image[:, :, ::64, ::64].reshape(1, 3, -1).repeat(1, 1, 2).transpose(1, 2),
        opacities=torch.linspace(0, 1, len(z)).unsqueeze(0),
    )

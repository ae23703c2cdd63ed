"""Depth Pro and Depth Anything V2, from the package `transformers`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sharp_cog.estimators.estimate import Estimate, normalized, pixels_of, resized
from sharp_cog.imaging.images import SourceImage

_MIN_INVERSE = 1e-4
"""Least inverse depth of Depth Pro, as in Apple's code: depth ends at 10,000 m."""

_MAX_INVERSE = 1e4
"""Largest inverse depth of Depth Pro, as in Apple's code."""

_SHORT_SIDE_PX = 518
"""Length of the image's shorter side for Depth Anything."""


def load(kind: str, checkpoint: str) -> nn.Module:
    """Load a model of a class of `transformers`, from a name on the hub or a folder.

    Raises:
        OSError, ValueError: The checkpoint does not exist, or does not fit.
    """
    import transformers  # It takes seconds to import, and the extra `depth` installs it.

    model: nn.Module = getattr(transformers, kind).from_pretrained(checkpoint)
    return model


@dataclass(frozen=True, slots=True)
class DepthPro:
    """Apple's Depth Pro (arXiv 2410.02073), which estimates depth in metres and the focal length."""

    model: Any
    device: torch.device

    @torch.inference_mode()
    def __call__(self, source: SourceImage) -> Estimate:
        """Estimate the depth of an image.

        The network predicts inverse depth for an image whose focal length is its width. Depth is proportional to the
        focal length over the width, for which the image's own focal length counts before the estimated one.
        """
        config = self.model.config
        # The network cuts patches from several scales of its input, which has the size of the largest scale.
        side = round(config.patch_size / min(config.scaled_images_ratios))
        pixels = resized(pixels_of(source, self.device), side, side) * 2.0 - 1.0
        output = self.model(pixel_values=pixels)
        camera = source.camera
        focal_length_px = None
        field_of_view = getattr(output, "field_of_view", None)
        if field_of_view is not None:
            half = math.radians(float(field_of_view.flatten()[0])) / 2
            focal_length_px = 0.5 * camera.width / math.tan(half)
        is_known = camera.focal_length_source != "default" or focal_length_px is None
        used_px = camera.focal_length_px if is_known else focal_length_px
        inverse = output.predicted_depth.float().reshape(1, 1, *output.predicted_depth.shape[-2:])
        inverse = resized(inverse * (camera.width / (used_px or camera.focal_length_px)), camera.height, camera.width)
        depth_m = 1.0 / inverse.clamp(_MIN_INVERSE, _MAX_INVERSE)
        return Estimate(depth_m=depth_m[0, 0].cpu().numpy(), focal_length_px=focal_length_px)


@dataclass(frozen=True, slots=True)
class DepthAnything:
    """Depth Anything V2 (arXiv 2406.09414) with a metric checkpoint, which estimates depth in metres."""

    model: Any
    device: torch.device

    @torch.inference_mode()
    def __call__(self, source: SourceImage) -> Estimate:
        """Estimate the depth of an image, which is resized to a shorter side of 518 pixels."""
        camera, patch = source.camera, self.model.config.patch_size
        factor = _SHORT_SIDE_PX / min(camera.width, camera.height)
        width, height = (max(patch, round(side * factor / patch) * patch) for side in (camera.width, camera.height))
        pixels = F.interpolate(pixels_of(source, self.device), size=(height, width), mode="bicubic", antialias=True)
        depth = self.model(pixel_values=normalized(pixels)).predicted_depth.float()
        depth_m = resized(depth.reshape(1, 1, *depth.shape[-2:]), camera.height, camera.width)
        return Estimate(depth_m=depth_m.clamp(min=0.0)[0, 0].cpu().numpy())

"""Depth estimation by other networks than SHARP's: Depth Pro and Depth Anything V2, from the package `transformers`."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sharp_cog.errors import CheckpointMissingError, NotInstalledError
from sharp_cog.imaging.images import SourceImage

CHECKPOINTS = {
    "depth-pro": "apple/DepthPro-hf",
    "depth-anything-v2-metric": "depth-anything/Depth-Anything-V2-Metric-Indoor-Large-hf",
}
"""Default checkpoints of the estimators in `sharp_cog.config.options.ESTIMATORS`, on the Hugging Face hub."""

_MIN_INVERSE = 1e-4
"""Least inverse depth of Depth Pro, as in Apple's code: depth ends at 10,000 m."""

_MAX_INVERSE = 1e4
"""Largest inverse depth of Depth Pro, as in Apple's code."""

# Mean and standard deviation of the colours in ImageNet, with which Depth Anything was trained.
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_SHORT_SIDE_PX = 518
"""Length of the image's shorter side for Depth Anything."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Depth that an estimator has found for an image.

    Attributes:
        depth_m: (height, width) float32, metres along the optical axis, with the size of the image.
        focal_length_px: Estimated focal length in pixels of the image; None if the estimator finds none.
    """

    depth_m: NDArray[np.float32]
    focal_length_px: float | None = None


Estimator = Callable[[SourceImage], Estimate]
"""Function that estimates the depth of an image."""


def load(name: str, *, checkpoint: str | None, device: torch.device) -> Estimator:
    """Load an estimator.

    Args:
        name: Key of `CHECKPOINTS`.
        checkpoint: Name of a checkpoint on the Hugging Face hub, or a local folder; None takes that of `CHECKPOINTS`.
        device: Device on which the estimator runs.

    Raises:
        NotInstalledError: The extra `depth` is not installed.
        CheckpointMissingError: The checkpoint does not exist and cannot be downloaded.
    """
    if importlib.util.find_spec("transformers") is None:
        raise NotInstalledError(
            f"{name} needs the extra 'depth' (transformers is missing): run .venv/bin/pip install -e '.[depth]'"
        )
    import transformers

    kinds = {"depth-pro": "DepthProForDepthEstimation", "depth-anything-v2-metric": "DepthAnythingForDepthEstimation"}
    checkpoint = checkpoint or CHECKPOINTS[name]
    try:
        model: nn.Module = getattr(transformers, kinds[name]).from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointMissingError(
            f"the checkpoint {checkpoint} of {name} cannot be loaded ({reason}): download it where there is a network "
            f"by 'hf download {checkpoint} --local-dir FOLDER', and give --estimator-checkpoint FOLDER"
        ) from error
    model = model.to(device).eval().requires_grad_(False)
    return DepthPro(model, device) if name == "depth-pro" else DepthAnything(model, device)


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
        pixels = _resized(_pixels(source, self.device), side, side) * 2.0 - 1.0
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
        inverse = _resized(inverse * (camera.width / (used_px or camera.focal_length_px)), camera.height, camera.width)
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
        pixels = _pixels(source, self.device)
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (_IMAGENET_MEAN, _IMAGENET_STD))
        pixels = F.interpolate(pixels, size=(height, width), mode="bicubic", antialias=True)
        depth = self.model(pixel_values=(pixels - mean) / std).predicted_depth.float()
        depth_m = _resized(depth.reshape(1, 1, *depth.shape[-2:]), camera.height, camera.width)
        return Estimate(depth_m=depth_m.clamp(min=0.0)[0, 0].cpu().numpy())


def _pixels(source: SourceImage, device: torch.device) -> Tensor:
    """Return the image as (1, 3, height, width) float32 in [0, 1]."""
    return torch.from_numpy(source.rgb).to(device).permute(2, 0, 1).unsqueeze(0).float() / 255.0


def _resized(values: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(values, size=(height, width), mode="bilinear", align_corners=False)

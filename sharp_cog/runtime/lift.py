"""Lift as a predictor: a baseline without weights, which never replaces SHARP unless a setting asks for it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from sharp_cog.errors import DepthError
from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.model.config import IMAGE_SIZE
from sharp_cog.model.lift import lift
from sharp_cog.runtime.predictor import Counters, Predicted, grey_input
from sharp_cog.runtime.preprocess import ModelInput


@dataclass(kw_only=True)
class LiftPredictor:
    """Lifts an image to the depth of an external map; see `sharp_cog.runtime.predictor.Predictor`."""

    device: torch.device
    image_size: int = IMAGE_SIZE
    counters: Counters = field(default_factory=Counters)
    needs_depth = True
    has_monodepth = False

    def predict(self, model_input: ModelInput) -> Predicted:
        """Place Gaussians on the depth map.

        Raises:
            DepthError: There is no depth map, or it would be aligned or fitted to monodepth, which the model lacks.
        """
        if model_input.depth_m is None:
            raise DepthError("the model 'lift' needs a depth map: give one as depth, or choose the model 'sharp'")
        if model_input.use.mode == "align":
            raise DepthError("depth_mode is 'align', but the model 'lift' has no monodepth: choose ratio or fixed")
        gaussians = lift(
            model_input.image,
            model_input.depth_m,
            model_input.use,
            disparity_factor=float(model_input.disparity_factor),
            aspect=model_input.aspect,
        )
        return Predicted(gaussians=gaussians)

    def warm_up(self) -> NDCGaussians:
        """Lift a grey image."""
        return self.predict(grey_input(self.image_size, self.device, has_depth=True)).gaussians

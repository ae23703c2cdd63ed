"""The model `lift` at a size that costs nothing."""

from __future__ import annotations

import torch

from sharp_cog import Settings, SharpPipeline
from sharp_cog.runtime.lift import LiftPredictor

CPU = torch.device("cpu")
NUM_VISIBLE = 32 * 32
"""Number of Gaussians on the visible surface; a margin around the image comes after them."""


class SmallLift(LiftPredictor):
    """Lift for images of 64 x 64 pixels, which has a Gaussian for each cell of 2 x 2 pixels."""

    def __init__(self) -> None:
        super().__init__(device=CPU, image_size=64)


def small_lift() -> SharpPipeline:
    """Return a pipeline with `SmallLift`."""
    return SharpPipeline(SmallLift(), device=CPU, settings=Settings(model="lift", device="cpu"))

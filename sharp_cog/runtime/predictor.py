"""The interface that SHARP, lift and Apple's own package have in common for the pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.runtime.preprocess import ModelInput


@dataclass(kw_only=True, slots=True)
class Counters:
    """Counts of events that a user should know of.

    Attributes:
        float32_repeats: Predictions that were repeated in float32, because half precision could not represent a value.
        float32_fallbacks: 1 if the self-check chose float32 in place of half precision.
        memory_shortages: Times that the device ran out of memory and the work was cut into smaller parts.
        graph_failures: 1 if the network could not be captured as CUDA graphs, and is launched kernel by kernel.
        reused_encodings: Predictions that skipped the encoders, because they had the same image as the last one.
    """

    float32_repeats: int = 0
    float32_fallbacks: int = 0
    memory_shortages: int = 0
    graph_failures: int = 0
    reused_encodings: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Predicted:
    """Output of a predictor for one image.

    Attributes:
        gaussians: A batch of one, in normalised device coordinates.
        monodepth_m: (1, 2, S, S) float32, monodepth in metres, front layer first, before an external depth map replaced
            it; None if the model has none, or does not return it.
        precision: Type that the network computed in: `float32`, `float16` or `bfloat16`.
    """

    gaussians: NDCGaussians
    monodepth_m: Tensor | None = None
    precision: str = "float32"


class Predictor(Protocol):
    """A model that predicts Gaussians. Only one thread may use it at a time.

    Attributes:
        image_size: Width and height in pixels, S, of the square image that it takes.
        needs_depth: Whether it requires an external depth map.
        has_monodepth: Whether it estimates and returns monodepth.
        counters: Events so far.
    """

    needs_depth: bool
    has_monodepth: bool
    counters: Counters

    # A property, because a plain attribute of a protocol must be writable, and `SharpRunner` derives it from its
    # network.
    @property
    def image_size(self) -> int: ...

    def predict(self, model_input: ModelInput) -> Predicted:
        """Predict the Gaussians of one image.

        Raises:
            DepthError: The depth map cannot be used.
        """
        ...

    def warm_up(self) -> NDCGaussians | None:
        """Run the model once, so that the first image does not wait; return None if there is nothing to warm up."""
        ...


def grey_input(size: int, device: torch.device, *, has_depth: bool) -> ModelInput:
    """Return a grey image of S x S pixels, one metre away if it has depth, for `Predictor.warm_up`."""
    return ModelInput(
        image=torch.full((1, 3, size, size), 128 / 255, device=device),
        disparity_factor=torch.ones(1, device=device),
        depth_m=torch.ones(1, 1, size, size, device=device) if has_depth else None,
    )

"""Apple's own package as a predictor, so that a deployment can compare this package with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sharp_cog.errors import CheckpointError, DepthError, NotInstalledError
from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.model.config import IMAGE_SIZE
from sharp_cog.model.external_depth import prepare
from sharp_cog.runtime.predictor import Counters, Predicted, grey_input
from sharp_cog.runtime.preprocess import ModelInput

COMMIT = "1eaa046834b81852261262b41b0919f5c1efdd2e"
"""Commit of github.com/apple/ml-sharp that the adapter was written for."""

# Apple asks for Python 3.13 and for more packages than a prediction needs, so neither the version file nor the list of
# dependencies is used.
_INSTALL = (
    f"git clone https://github.com/apple/ml-sharp && cd ml-sharp && git checkout {COMMIT} && rm .python-version && "
    "pip install --no-deps . && pip install timm==1.0.22 plyfile==1.1.5 scipy==1.17.1"
)


class MLSharp:
    """Apple's predictor; see `sharp_cog.runtime.predictor.Predictor`.

    Attributes:
        network: Apple's module, filled.
    """

    image_size = IMAGE_SIZE
    needs_depth = False
    has_monodepth = False
    """Apple's package estimates monodepth, but does not return it."""

    def __init__(self, state: Mapping[str, Tensor], *, device: torch.device) -> None:
        """Build Apple's predictor and fill it.

        Args:
            state: Apple's checkpoint.
            device: Device to run on.

        Raises:
            NotInstalledError: Apple's package is not installed; the message says how to install it.
            CheckpointError: The checkpoint does not fit Apple's network.
        """
        try:
            from sharp.models import PredictorParams, create_predictor
        except ImportError as error:
            raise NotInstalledError(
                f"the model 'ml-sharp' needs Apple's package, and importing it failed ({error}): install it with\n"
                f"{_INSTALL}"
            ) from error
        self.device, self.counters = device, Counters()
        self.network: nn.Module = create_predictor(PredictorParams())
        try:
            # Copied, not assigned: mapped tensors would change with their file, under a running network.
            self.network.load_state_dict(dict(state), strict=True)
        except RuntimeError as error:
            raise CheckpointError(f"the checkpoint does not fit Apple's network: {error}") from error
        self.network.to(device).eval().requires_grad_(False)

    def predict(self, model_input: ModelInput) -> Predicted:
        """Predict Gaussians by Apple's code.

        Raises:
            DepthError: The options ask for a use of the depth map that Apple's package does not have.
        """
        depth_m, use = model_input.depth_m, model_input.use
        if depth_m is not None:
            if use.mode != "align" or use.fit != "none":
                raise DepthError(
                    f"depth_mode is {use.mode!r} and depth_fit {use.fit!r}, but Apple's package can only align: choose "
                    "depth_mode align and depth_fit none"
                )
            # Without monodepth nothing could be filled in here, but the pipeline has filled all unknown pixels already.
            depth_m = prepare(depth_m, None, use)
        return Predicted(gaussians=_from_apple(self.network(model_input.image, model_input.disparity_factor, depth_m)))

    def warm_up(self) -> NDCGaussians:
        """Run the network on a grey image."""
        return self.predict(grey_input(self.image_size, self.device, has_depth=False)).gaussians


def _from_apple(gaussians: Any) -> NDCGaussians:
    """Rename the fields of Apple's `Gaussians3D`, whose shapes are ours."""
    return NDCGaussians(
        means=gaussians.mean_vectors,
        scales=gaussians.singular_values,
        quaternions_wxyz=gaussians.quaternions,
        colors_linear=gaussians.colors,
        opacities=gaussians.opacities,
    )

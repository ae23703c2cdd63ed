"""Apple's own package behind our call, so that a deployment can check ours against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from sharp_cog.errors import CheckpointError, DepthError, NotInstalledError
from sharp_cog.gaussians import NDCGaussians
from sharp_cog.network.given_depth import DEFAULT_USE, DepthUse, prepared

COMMIT = "1eaa046834b81852261262b41b0919f5c1efdd2e"
"""The commit of github.com/apple/ml-sharp that the adapter was written for."""

_INSTALL = (
    f"git clone https://github.com/apple/ml-sharp && cd ml-sharp && git checkout {COMMIT} && rm .python-version && "
    "pip install --no-deps . && pip install timm==1.0.22 plyfile==1.1.5 scipy==1.17.1"
)


class MLSharp(nn.Module):
    """Apple's predictor; the same call as `Sharp`."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        """Builds Apple's predictor and fills it.

        Args:
            state: Apple's checkpoint.

        Raises:
            NotInstalledError: Apple's package is not installed; the message says how to install it.
            CheckpointError: The checkpoint does not fit Apple's network.
        """
        super().__init__()
        try:
            from sharp.models import PredictorParams, create_predictor
        except ImportError as error:
            raise NotInstalledError(
                f"the model 'ml-sharp' needs Apple's package, and importing it failed ({error}): install it with\n"
                f"{_INSTALL}"
            ) from error
        self.predictor: nn.Module = create_predictor(PredictorParams())
        try:
            # Copied, not assigned: nothing that runs may depend on what becomes of the file.
            self.predictor.load_state_dict(dict(state), strict=True)
        except RuntimeError as error:
            raise CheckpointError(f"the checkpoint does not fit Apple's network: {error}") from error

    def forward(
        self,
        image: Tensor,
        disparity_factor: Tensor,
        depth: Tensor | None = None,
        use: DepthUse = DEFAULT_USE,
        on_monodepth: Callable[[Tensor], None] | None = None,
    ) -> NDCGaussians:
        """Predicts Gaussians; shapes as in `Sharp.forward`.

        Raises:
            DepthError: The depth map is to be used in a way that Apple's package does not have.
        """
        if on_monodepth is not None:
            raise DepthError("save_internal_depth: Apple's package does not give its own depth away: use model 'sharp'")
        if depth is not None:
            if use.mode != "align" or use.fit != "none":
                raise DepthError(
                    f"depth_mode is {use.mode!r} and depth_fit {use.fit!r}, but Apple's package can only align: choose "
                    "depth_mode align and depth_fit none"
                )
            depth = prepared(depth, None, use)
        return _from_apple(self.predictor(image, disparity_factor, depth))


def _from_apple(gaussians: Any) -> NDCGaussians:
    """Renames the fields of Apple's `Gaussians3D`, whose shapes are ours."""
    return NDCGaussians(
        means=gaussians.mean_vectors,
        scales=gaussians.singular_values,
        quaternions_wxyz=gaussians.quaternions,
        colors_linear=gaussians.colors,
        opacities=gaussians.opacities,
    )

"""SHARP: one picture in, 1,179,648 Gaussians out (arXiv 2512.10685)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from sharp_cog.gaussians import NDCGaussians
from sharp_cog.network.alignment import DepthAlignment
from sharp_cog.network.composer import compose
from sharp_cog.network.config import SharpConfig
from sharp_cog.network.features import FeatureModel, PredictionHead
from sharp_cog.network.given_depth import DEFAULT_USE, DepthUse, prepared, replaced
from sharp_cog.network.initializer import initialize
from sharp_cog.network.monodepth import MonodepthModel, depth_from_disparity

UNUSED_PARAMETERS = frozenset(
    f"monodepth_model.monodepth_predictor.encoder.{encoder}.head.{leaf}"
    for encoder in ("patch_encoder", "image_encoder")
    for leaf in ("weight", "bias")
)
"""What the checkpoint holds and inference never uses: an image classifier on each vision transformer."""


class Sharp(nn.Module):
    """The whole network. Parameters carry the checkpoint's names.

    Build it under `torch.device("meta")` and fill it by assignment to skip the random initialisation.
    """

    def __init__(self, config: SharpConfig) -> None:
        super().__init__()
        self.config = config
        self.monodepth_model = MonodepthModel(config)
        self.feature_model = FeatureModel(config)
        self.prediction_head = PredictionHead(config)
        self.depth_alignment = DepthAlignment()

    def forward(
        self,
        image: Tensor,
        disparity_factor: Tensor,
        depth: Tensor | None = None,
        use: DepthUse = DEFAULT_USE,
        on_monodepth: Callable[[Tensor], None] | None = None,
    ) -> NDCGaussians:
        """Predicts Gaussians.

        Args:
            image: (B, 3, 1536, 1536), RGB in [0, 1].
            disparity_factor: (B,), focal length over width of the original picture, both in pixels.
            depth: (B, 1, 1536, 1536), depth in metres in the place of SHARP's own, NaN where unknown; or None.
            use: How `depth` takes that place.
            on_monodepth: Is called with SHARP's own depth in metres, (B, 2, 1536, 1536), before anything replaces it.

        Raises:
            DepthError: The depth map cannot be used.
        """
        features, disparity = self.monodepth_model(image)
        monodepth_m = depth_from_disparity(disparity, disparity_factor)
        if on_monodepth is not None:
            on_monodepth(monodepth_m)
        if depth is not None:
            depth = prepared(depth, monodepth_m[:, :1], use)
            if use.mode == "align":
                monodepth_m = monodepth_m * self.depth_alignment(monodepth_m, depth)
            else:
                monodepth_m = replaced(monodepth_m, depth, use)
        base = initialize(image, monodepth_m)
        texture_features, geometry_features = self.feature_model(base.feature_input, features)
        return compose(base, self.prediction_head(texture_features, geometry_features))

"""SHARP: one picture in, 1,179,648 Gaussians out (arXiv 2512.10685)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """What the network makes of a picture before it has to know the depth.

    Attributes:
        disparity: (B, 2, 1536, 1536) float32, front layer first, non-negative.
        decoded: (B, feature_width, 768, 768), of the feature model's decoder.
    """

    disparity: Tensor
    decoded: Tensor


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
        encoding = self.encode(image)
        depth_m = self.depth(encoding, disparity_factor, depth, use, on_monodepth)
        return self.place(image, encoding.decoded, depth_m)

    def encode(self, image: Tensor) -> Encoding:
        """What depends on the picture alone: nine tenths of the work.

        Args:
            image: (B, 3, 1536, 1536) float32, RGB in [0, 1].
        """
        features, disparity = self.monodepth_model(image)
        return Encoding(disparity=disparity, decoded=self.feature_model.decoder(features))

    def depth(
        self,
        encoding: Encoding,
        disparity_factor: Tensor,
        depth: Tensor | None = None,
        use: DepthUse = DEFAULT_USE,
        on_monodepth: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """The two layers of depth (B, 2, 1536, 1536) in metres; arguments and errors as for `forward`."""
        monodepth_m = depth_from_disparity(encoding.disparity, disparity_factor)
        if on_monodepth is not None:
            on_monodepth(monodepth_m)
        if depth is None:
            return monodepth_m
        depth = prepared(depth, monodepth_m[:, :1], use)
        if use.mode == "align":
            scale_map: Tensor = self.depth_alignment(monodepth_m, depth)
            return monodepth_m * scale_map
        return replaced(monodepth_m, depth, use)

    def place(self, image: Tensor, decoded: Tensor, depth_m: Tensor) -> NDCGaussians:
        """Gaussians on those layers.

        Args:
            image: As for `encode`.
            decoded: Of the picture's `Encoding`.
            depth_m: (B, 2, 1536, 1536), metres.
        """
        base = initialize(image, depth_m)
        texture_features, geometry_features = self.feature_model(base.feature_input, decoded)
        return compose(base, self.prediction_head(texture_features, geometry_features))

"""SHARP (arXiv 2512.10685): predicts 1,179,648 Gaussians from one image.

`Sharp.forward` shows the whole graph in reading order: monodepth, depth layers, base Gaussians, features, deltas.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.model.alignment import DepthAlignment
from sharp_cog.model.composer import compose
from sharp_cog.model.config import SharpConfig
from sharp_cog.model.external_depth import DEFAULT_USE, DepthUse, prepare, replace_layers
from sharp_cog.model.features import FeatureModel, PredictionHead
from sharp_cog.model.initializer import initialize
from sharp_cog.model.monodepth import MonodepthModel, depth_from_disparity

UNUSED_PARAMETERS = frozenset(
    f"monodepth_model.monodepth_predictor.encoder.{encoder}.head.{leaf}"
    for encoder in ("patch_encoder", "image_encoder")
    for leaf in ("weight", "bias")
)
"""Parameters of the checkpoint that inference never uses: an image classifier on each vision transformer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """Everything that the network computes from the image alone, before the depth of its Gaussians is chosen.

    Attributes:
        disparity: (B, 2, S, S) float32, front layer first, non-negative.
        decoded: (B, feature_width, S / 2, S / 2), output of the feature model's decoder.
    """

    disparity: Tensor
    decoded: Tensor


class Sharp(nn.Module):
    """The whole network. Its parameters have the names of Apple's checkpoint, so that this loads strictly.

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
        self, image: Tensor, disparity_factor: Tensor, depth_m: Tensor | None = None, use: DepthUse = DEFAULT_USE
    ) -> NDCGaussians:
        """Predict Gaussians.

        Args:
            image: (B, 3, S, S), RGB in [0, 1]; S is the configuration's `image_size`.
            disparity_factor: (B,), focal length over width of the original image, both in pixels.
            depth_m: (B, 1, S, S), external depth in metres, NaN where unknown; or None.
            use: Use of the external depth in place of monodepth.

        Returns:
            N = S * S / 2 Gaussians for each image.

        Raises:
            DepthError: The depth map cannot be used.
        """
        encoding = self.encode(image)
        monodepth_m = depth_from_disparity(encoding.disparity, disparity_factor)
        return self.compose(image, encoding.decoded, self.depth_layers(monodepth_m, depth_m, use))

    def encode(self, image: Tensor) -> Encoding:
        """Compute everything that depends on the image alone, which is nine tenths of the work.

        Args:
            image: (B, 3, S, S) float32, RGB in [0, 1].
        """
        features, disparity = self.monodepth_model(image)
        return Encoding(disparity=disparity, decoded=self.feature_model.decoder(features))

    def depth_layers(self, monodepth_m: Tensor, depth_m: Tensor | None, use: DepthUse) -> Tensor:
        """Choose the two layers of depth on which the Gaussians are placed.

        Args:
            monodepth_m: (B, 2, S, S), metres.
            depth_m: External depth, as for `forward`.
            use: Use of the external depth, as for `forward`.

        Returns:
            (B, 2, S, S), metres.

        Raises:
            DepthError: The depth map cannot be used.
        """
        if depth_m is None:
            return monodepth_m
        # The front layer is what a depth map shows.
        depth_m = prepare(depth_m, monodepth_m[:, :1], use)
        if use.mode == "align":
            scale_map: Tensor = self.depth_alignment(monodepth_m, depth_m)
            return monodepth_m * scale_map
        return replace_layers(monodepth_m, depth_m, use)

    def compose(self, image: Tensor, decoded: Tensor, depth_m: Tensor) -> NDCGaussians:
        """Place Gaussians on two layers of depth, and refine them.

        Args:
            image: (B, 3, S, S), RGB in [0, 1].
            decoded: (B, feature_width, S / 2, S / 2), from the image's `Encoding`.
            depth_m: (B, 2, S, S), metres.
        """
        base = initialize(image, depth_m)
        texture_features, geometry_features = self.feature_model(base.feature_input, decoded)
        return compose(base, self.prediction_head(texture_features, geometry_features))

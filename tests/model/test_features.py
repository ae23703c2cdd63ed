"""The layout of the features and the deltas."""

from __future__ import annotations

import torch

from sharp_cog.model.config import SharpConfig
from sharp_cog.model.features import FeatureModel, PredictionHead

CONFIG = SharpConfig.tiny(grid_size=8)


@torch.inference_mode()
def test_geometry_moves_the_means_and_texture_everything_else() -> None:
    head = PredictionHead(CONFIG)
    texture, geometry = torch.rand(2, 1, CONFIG.feature_channels, 4, 6).unbind(0)
    delta = head(texture, geometry)
    assert delta.shape == (1, 14, 2, 4, 6)
    other = head(texture, geometry + 1)
    assert torch.equal(other[:, 3:], delta[:, 3:])
    assert not torch.equal(other[:, :3], delta[:, :3])
    # The convolution's channels are attribute-major: x of the front layer, x of the back layer, y of the front layer.
    plain = head.geometry_prediction_head(geometry)
    assert torch.equal(delta[0, 1, 0], plain[0, 2])


@torch.inference_mode()
def test_the_feature_model_halves_its_input_and_fuses_it_with_the_decoded_features() -> None:
    model = FeatureModel(CONFIG)
    decoded = torch.rand(1, CONFIG.feature_width, 8, 8)
    features = model(torch.rand(1, 5, 16, 16), decoded)
    assert [tuple(feature.shape) for feature in features] == [(1, CONFIG.feature_channels, 8, 8)] * 2
    assert all(feature.min() >= 0 for feature in features)

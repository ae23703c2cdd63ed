"""The adapter for Apple's package.

The package cannot be installed from a package index, so a stand-in with its names and calls serves here.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from sharp_cog.errors import CheckpointError, DepthError, NotInstalledError
from sharp_cog.model.external_depth import DepthUse
from sharp_cog.model.sharp import UNUSED_PARAMETERS, Sharp
from sharp_cog.runtime.ml_sharp import COMMIT, MLSharp
from tests.parity import SMALL_CONFIG, small_input, small_network, small_state

CPU = torch.device("cpu")


class Gaussians3D(NamedTuple):
    """Output of Apple's network."""

    mean_vectors: Tensor
    singular_values: Tensor
    quaternions: Tensor
    colors: Tensor
    opacities: Tensor


class StandIn(Sharp):
    """A network with Apple's call and result and, like Apple's, with classifiers that nothing uses."""

    def __init__(self) -> None:
        super().__init__(SMALL_CONFIG)
        for vit in (
            self.monodepth_model.monodepth_predictor.encoder.patch_encoder,
            self.monodepth_model.monodepth_predictor.encoder.image_encoder,
        ):
            vit.head = nn.Linear(64, 8)

    def forward(  # type: ignore[override]  # Apple's call
        self, image: Tensor, disparity_factor: Tensor, depth: Tensor | None = None
    ) -> Any:
        ours = super().forward(image, disparity_factor, depth, DepthUse(mode="align"))
        return Gaussians3D(ours.means, ours.scales, -ours.quaternions_wxyz, ours.colors_linear, ours.opacities)


@pytest.fixture
def apple(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a stand-in importable as `sharp.models`."""
    models = ModuleType("sharp.models")
    models.PredictorParams = object  # type: ignore[attr-defined]
    models.create_predictor = lambda params: StandIn()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sharp", ModuleType("sharp"))
    monkeypatch.setitem(sys.modules, "sharp.models", models)


def test_without_the_package_the_error_has_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sharp", None)
    with pytest.raises(NotInstalledError, match=COMMIT):
        MLSharp({}, device=CPU)


@pytest.mark.usefixtures("apple")
def test_a_checkpoint_that_does_not_fit_is_refused() -> None:
    incomplete = small_state()
    del incomplete["prediction_head.texture_prediction_head.bias"]
    with pytest.raises(CheckpointError, match=r"prediction_head\.texture_prediction_head\.bias"):
        MLSharp(incomplete, device=CPU)


@pytest.mark.usefixtures("apple")
def test_a_use_of_depth_that_the_package_lacks_is_refused() -> None:
    depth_m = torch.ones(1, 1, 512, 512)
    with pytest.raises(DepthError, match="choose depth_mode align and depth_fit none"):
        MLSharp(small_state(), device=CPU).predict(small_input(depth_m, DepthUse(mode="ratio")))


@pytest.mark.usefixtures("apple")
def test_apples_gaussians_get_our_names() -> None:
    model_input = small_input(torch.full((1, 1, 512, 512), 2.0), DepthUse(mode="align"))
    with torch.inference_mode():
        predicted = MLSharp(small_state(), device=CPU).predict(model_input)
        expected = small_network()(
            model_input.image, model_input.disparity_factor, model_input.depth_m, DepthUse(mode="align")
        )
    assert predicted.monodepth_m is None, "the package does not return it"
    assert torch.equal(predicted.gaussians.means, expected.means)
    assert torch.equal(predicted.gaussians.scales, expected.scales)
    assert torch.equal(predicted.gaussians.quaternions_wxyz, -expected.quaternions_wxyz), "the stand-in's own sign"
    assert torch.equal(predicted.gaussians.colors_linear, expected.colors_linear)
    assert torch.equal(predicted.gaussians.opacities, expected.opacities)


def test_unused_parameters_are_the_classifiers() -> None:
    assert all(name.endswith(("encoder.head.weight", "encoder.head.bias")) for name in UNUSED_PARAMETERS)
    assert len(UNUSED_PARAMETERS) == 4

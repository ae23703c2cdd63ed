"""The adapter for Apple's package and the stage-by-stage comparison.

Apple's package cannot be installed from a package index, so a stand-in with its names and call serves here: what is
tested is the adapter's wiring, and that a comparison finds exactly the stages that differ.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sharp_cog.cli import main
from sharp_cog.errors import CheckpointError, NotInstalledError
from sharp_cog.model.config import SharpConfig
from sharp_cog.model.external_depth import DepthUse
from sharp_cog.model.sharp import UNUSED_PARAMETERS, Sharp
from sharp_cog.runtime.ml_sharp import COMMIT, MLSharp
from sharp_cog.runtime.verify import compare, of_same_sign
from tests.parity import Reference, network, state


class Gaussians3D(NamedTuple):
    """Field names of Apple's type."""

    mean_vectors: Tensor
    singular_values: Tensor
    quaternions: Tensor
    colors: Tensor
    opacities: Tensor


class StandIn(Sharp):
    """A predictor with Apple's call and result, and, like Apple's, with the classifiers that nothing uses."""

    def __init__(self) -> None:
        super().__init__(SharpConfig.tiny())
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
    """Makes `sharp.models` importable."""
    models = ModuleType("sharp.models")
    models.PredictorParams = object  # type: ignore[attr-defined]
    models.create_predictor = lambda params: StandIn()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sharp", ModuleType("sharp"))
    monkeypatch.setitem(sys.modules, "sharp.models", models)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.load("tiny")


def test_without_the_package_the_error_holds_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sharp", None)
    with pytest.raises(NotInstalledError, match=COMMIT):
        MLSharp({})


@pytest.mark.usefixtures("apple")
def test_a_checkpoint_that_does_not_fit_is_refused() -> None:
    incomplete = state("tiny")
    del incomplete["prediction_head.texture_prediction_head.bias"]
    with pytest.raises(CheckpointError, match=r"prediction_head\.texture_prediction_head\.bias"):
        MLSharp(incomplete)


@pytest.mark.usefixtures("apple")
def test_comparison_finds_the_stages_that_differ(reference: Reference) -> None:
    apples = MLSharp(state("tiny")).eval()
    ours = network("tiny")

    def differences() -> dict[str, float]:
        found = compare(
            apples, apples.predictor, ours, image=reference.image, disparity_factor=reference.disparity_factor
        )
        return {difference.stage: difference.relative for difference in found}

    same = differences()
    assert list(same) == [
        "encoder 0", "encoder 1", "encoder 2", "encoder 3", "encoder 4", "monodepth decoder", "disparity",
        "features 0", "features 1", "delta", "means", "scales", "quaternions_wxyz", "colors_linear", "opacities",
    ]  # fmt: skip
    assert max(same.values()) < 1e-6

    with torch.no_grad():
        bias = state("tiny")["feature_model.texture_head.3.bias"]
        ours.get_parameter("feature_model.texture_head.3.bias").copy_(bias + 0.1)
    changed = differences()
    unchanged = {"encoder 0", "encoder 1", "encoder 2", "encoder 3", "encoder 4", "monodepth decoder", "disparity"}
    unchanged |= {"features 1", "means"}  # Geometry and positions do not depend on the texture head.
    for stage, relative in changed.items():
        assert (relative < 1e-6) == (stage in unchanged), f"{stage}: {relative}"


def test_one_rotation_is_no_difference_whatever_its_sign() -> None:
    """About w = 0 a rounding decides the sign of w."""
    reference = torch.tensor([[1e-7, 0.6, 0.8, 0.0], [-1e-7, 0.6, 0.8, 0.0], [1.0, 0.0, 0.0, 0.0]])
    rounded = reference + torch.tensor([[-2e-7, 0.0, 0.0, 0.0], [2e-7, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    for value in (reference, -reference, rounded, -rounded):
        assert (of_same_sign(value, reference) - reference).abs().max() < 1e-6
    other = torch.tensor([[0.6, 0.8, 0.0, 0.0]])
    assert torch.equal(of_same_sign(other, reference[:1]), other)


@pytest.mark.usefixtures("apple")
def test_the_verify_command_prints_every_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(state("tiny"), tmp_path / "tiny.pt")
    Image.new("RGB", (96, 64), "grey").save(tmp_path / "grey.png")
    arguments = ["verify", str(tmp_path / "grey.png"), "--checkpoint", str(tmp_path / "tiny.pt"), "--device", "cpu"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert all(stage in said for stage in ("encoder 0", "disparity", "delta", "quaternions_wxyz", "the same within"))


def test_unused_parameters_are_the_classifiers() -> None:
    assert all(name.endswith(("encoder.head.weight", "encoder.head.bias")) for name in UNUSED_PARAMETERS)
    assert len(UNUSED_PARAMETERS) == 4

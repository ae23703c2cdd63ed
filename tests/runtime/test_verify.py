"""The comparison of two predictors, stage by stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from sharp_cog.cli import main
from sharp_cog.runtime.ml_sharp import MLSharp
from sharp_cog.runtime.runner import SharpRunner
from sharp_cog.runtime.verify import compare, difference, of_same_sign
from sharp_cog.runtime.weights import Weights
from tests.parity import small_input, small_state
from tests.runtime.test_ml_sharp import apple

__all__ = ["apple"]

CPU = torch.device("cpu")


@pytest.mark.usefixtures("apple")
def test_exactly_the_stages_that_differ_are_found() -> None:
    reference, model_input = MLSharp(small_state(), device=CPU), small_input()
    weights = Weights(state=small_state(), is_folded=False)
    candidate = SharpRunner(weights, device=CPU, dtype=torch.float32, keeps_encoding=False)

    def differences() -> dict[str, float]:
        found = compare(reference, reference.network, candidate, candidate.model, model_input)
        return {difference.stage: difference.relative for difference in found}

    same = differences()
    assert list(same) == [
        "encoder 0", "encoder 1", "encoder 2", "encoder 3", "encoder 4", "monodepth decoder", "disparity",
        "features 0", "features 1", "delta", "means", "scales", "quaternions_wxyz", "colors_linear", "opacities",
    ]  # fmt: skip
    assert max(same.values()) < 1e-5

    with torch.no_grad():
        candidate.model.get_parameter("feature_model.texture_head.3.bias").add_(0.1)
    unchanged = {"encoder 0", "encoder 1", "encoder 2", "encoder 3", "encoder 4", "monodepth decoder", "disparity"}
    unchanged |= {"features 1", "means"}  # Geometry and positions do not depend on the texture head.
    for stage, relative in differences().items():
        assert (relative < 1e-5) == (stage in unchanged), f"{stage}: {relative}"


def test_a_difference_is_relative_to_the_reference() -> None:
    found = difference("disparity", torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]))
    assert (found.relative, found.maximum) == pytest.approx((0.1, 0.5))
    with pytest.raises(ValueError, match="stage disparity has shape"):
        difference("disparity", torch.ones(2), torch.ones(3))


def test_a_quaternion_and_its_negative_are_the_same_rotation() -> None:
    reference = torch.tensor([[1e-7, 0.6, 0.8, 0.0], [-1e-7, 0.6, 0.8, 0.0], [1.0, 0.0, 0.0, 0.0]])
    # Near w = 0, rounding decides the sign of w.
    rounded = reference + torch.tensor([[-2e-7, 0.0, 0.0, 0.0], [2e-7, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    for value in (reference, -reference, rounded, -rounded):
        assert (of_same_sign(value, reference) - reference).abs().max() < 1e-6
    other = torch.tensor([[0.6, 0.8, 0.0, 0.0]])
    assert torch.equal(of_same_sign(other, reference[:1]), other)


@pytest.mark.usefixtures("apple")
def test_the_command_compares_a_checkpoint_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(small_state(), tmp_path / "small.pt")
    Image.new("RGB", (96, 64), "grey").save(tmp_path / "grey.png")
    arguments = ["verify", str(tmp_path / "grey.png"), "--checkpoint", str(tmp_path / "small.pt"), "--device", "cpu"]
    assert main(arguments) == 0
    assert "the same within" in capsys.readouterr().out

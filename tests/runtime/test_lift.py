"""Lift as a predictor; `tests/model/test_lift.py` has its geometry."""

import pytest
import torch

from sharp_cog.errors import DepthError
from sharp_cog.model.external_depth import DepthUse
from sharp_cog.model.lift import lift
from sharp_cog.runtime.lift import LiftPredictor
from sharp_cog.runtime.preprocess import ModelInput

SIZE = 64


def model_input(depth_m: torch.Tensor | None, mode: str = "ratio") -> ModelInput:
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    use = DepthUse(mode=mode)
    return ModelInput(image=image, disparity_factor=torch.ones(1), aspect=1.5, depth_m=depth_m, use=use)


def test_an_image_with_depth_is_lifted() -> None:
    given = model_input(torch.full((1, 1, SIZE, SIZE), 2.0))
    predicted = LiftPredictor(device=torch.device("cpu")).predict(given)
    assert given.depth_m is not None
    expected = lift(given.image, given.depth_m, given.use, disparity_factor=1.0, aspect=1.5)
    assert torch.equal(predicted.gaussians.means, expected.means)
    assert predicted.monodepth_m is None
    assert predicted.precision == "float32"


def test_an_image_without_depth_is_refused_with_the_remedy() -> None:
    with pytest.raises(DepthError, match="needs a depth map: give one"):
        LiftPredictor(device=torch.device("cpu")).predict(model_input(None))


def test_a_depth_map_cannot_be_aligned_to_a_depth_that_the_model_lacks() -> None:
    with pytest.raises(DepthError, match=r"depth_mode is 'align'.* choose ratio or fixed"):
        LiftPredictor(device=torch.device("cpu")).predict(model_input(torch.ones(1, 1, SIZE, SIZE), "align"))


def test_warm_up_needs_no_image() -> None:
    gaussians = LiftPredictor(device=torch.device("cpu"), image_size=SIZE).warm_up()
    assert gaussians.means.shape[1] >= (SIZE // 2) ** 2

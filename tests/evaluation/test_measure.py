"""Scores of splats: the scale, holes, LPIPS, and that lift's hidden surfaces are worth something."""

from __future__ import annotations

import importlib.machinery
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from sharp_cog import PredictOptions, Settings, SharpPipeline
from sharp_cog.errors import OptionError
from sharp_cog.evaluation.cases import MOVES_M, Case, traced
from sharp_cog.evaluation.measure import Score, Splat, compare, load_lpips, options_of, predict
from sharp_cog.model.composer import NUM_ATTRIBUTES, compose
from sharp_cog.model.initializer import initialize
from sharp_cog.runtime.lift import LiftPredictor
from sharp_cog.runtime.predictor import Predicted
from sharp_cog.runtime.preprocess import ModelInput
from tests.lift import CPU
from tests.preview.scenes import wall


class BaseGrid(LiftPredictor):
    """SHARP's base Gaussians on the depth map: nothing is hidden behind them."""

    def predict(self, model_input: ModelInput) -> Predicted:
        assert model_input.depth_m is not None
        base = initialize(model_input.image, model_input.depth_m)
        return Predicted(gaussians=compose(base, torch.zeros(1, NUM_ATTRIBUTES, *base.inverse_z.shape[1:])))


@pytest.fixture(scope="module")
def street() -> Case:
    return traced("street", width=72)


def scores_of(predictor: type[LiftPredictor], case: Case) -> tuple[Splat, dict[str, Score]]:
    pipeline = SharpPipeline(
        predictor(device=CPU, image_size=256), device=CPU, settings=Settings(model="lift", device="cpu")
    )
    splat = predict(pipeline, case, options_of(case, {}), gives_depth=False, alignment="none")
    return splat, {score.view: score for score, _, _ in compare(case, splat, None)}


def test_lift_shows_novel_views_better_than_a_surface_alone_and_without_holes(street: Case) -> None:
    splat, lifted = scores_of(LiftPredictor, street)
    grid, bare = scores_of(BaseGrid, street)
    assert list(lifted) == list(MOVES_M)
    assert len(splat.gaussians) < 0.75 * len(grid.gaussians)
    for name in ("right", "left", "up"):
        assert lifted[name].psnr > bare[name].psnr + 1
        assert lifted[name].ssim > bare[name].ssim + 0.04
        assert lifted[name].holes == 0
    assert bare["right"].holes > 0.003
    assert lifted["own"].psnr > bare["own"].psnr + 1


def stub(gaussians: Any, *, needs_depth: bool = False) -> tuple[SharpPipeline, list[Any]]:
    requests = list[Any]()

    def answer(request: Any) -> Any:
        requests.append(request)
        return SimpleNamespace(gaussians=gaussians)

    answer.predictor = SimpleNamespace(needs_depth=needs_depth)  # type: ignore[attr-defined]
    return cast(SharpPipeline, answer), requests


def case_with(depth: float | None) -> Case:
    known = None if depth is None else np.full((64, 96), depth, dtype=np.float32)
    if known is not None:
        known[:20] = np.nan
    return Case(name="wall", image=np.zeros((64, 96, 3), np.uint8), focal_length_px=80.0, depth=known, views=())


def test_alignment_brings_the_splat_to_the_known_depth() -> None:
    pipeline, requests = stub(wall(2.0))
    case = case_with(7.0)
    splat = predict(pipeline, case, options_of(case, {}), gives_depth=False, alignment="depth")
    assert splat.scale == pytest.approx(3.5, rel=1e-3)
    assert splat.gaussians.means[:, 2].median().item() == pytest.approx(7.0, rel=1e-3)
    assert requests[0].depth is None
    assert (requests[0].options.focal_length_px, requests[0].options.depth_format) == (80.0, "metric")
    splat = predict(pipeline, case, options_of(case, {}), gives_depth=True, alignment="none")
    assert splat.scale == 1.0
    assert requests[1].depth is case.depth


def test_depth_that_is_needed_and_not_there_is_named() -> None:
    for needs_depth, alignment in ((True, "none"), (False, "depth")):
        pipeline, _ = stub(wall(2.0), needs_depth=needs_depth)
        with pytest.raises(OptionError, match=r"wall has no depth map.*depth_file_path"):
            predict(pipeline, case_with(None), PredictOptions(), gives_depth=False, alignment=alignment)
    nothing = case_with(7.0)
    assert nothing.depth is not None
    nothing.depth[:] = np.nan
    with pytest.raises(OptionError, match="no known depth where the splat is seen"):
        predict(stub(wall(2.0))[0], nothing, PredictOptions(), gives_depth=False, alignment="depth")


def test_lpips_gets_images_from_minus_one_to_one_and_is_left_out_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Difference(torch.nn.Module):
        def __init__(self, net: str, *, verbose: bool) -> None:
            super().__init__()
            assert (net, verbose) == ("alex", False)

        def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            assert first.shape == second.shape == (1, 3, 12, 16)
            assert (first.min().item(), second.max().item()) == (-1.0, 1.0)
            return (first - second).abs().mean().view(1, 1, 1, 1)

    fake = ModuleType("lpips")
    fake.__spec__ = importlib.machinery.ModuleSpec("lpips", None)
    fake.LPIPS = Difference  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", fake)
    measure = load_lpips(CPU)
    assert measure is not None
    black, white = np.zeros((12, 16, 3), np.uint8), np.full((12, 16, 3), 255, np.uint8)
    assert measure(black, white) == 2.0
    monkeypatch.delitem(sys.modules, "lpips")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert load_lpips(CPU) is None

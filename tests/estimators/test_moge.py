"""MoGe-2 in plain torch, compared with the authors' own code and with exact geometry."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from sharp_cog.estimators import moge
from sharp_cog.estimators.moge import MoGe, MoGeEstimator
from tests.data.parity import synthetic
from tests.estimators.references import moge_checkpoint, reference, source

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> MoGe:
    return moge.from_checkpoint(moge_checkpoint()).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return reference("moge_2")


def test_the_network_computes_the_same_as_the_authors_code(network: MoGe, expected: dict[str, Any]) -> None:
    pixels = torch.from_numpy(synthetic.photograph(120, 80, 3)).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        points, mask, scale = network(pixels)
    index = expected["pixel_index"]
    np.testing.assert_allclose(points[0].reshape(-1, 3)[index], expected["points"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mask[0].flatten()[index], expected["mask"], atol=1e-5)
    np.testing.assert_allclose(scale, expected["metric_scale"], rtol=1e-5)


def test_depth_and_focal_length_agree_with_the_authors_solver(network: MoGe, expected: dict[str, Any]) -> None:
    estimate = MoGeEstimator(network, CPU)(source(120, 80, 100.0, known="default"))
    depth = estimate.depth_m.ravel()[expected["pixel_index"]]
    assert (np.isfinite(depth) == np.isfinite(expected["depth"])).all()
    # The authors' solver stops at a tolerance of 1e-3.
    seen = np.isfinite(depth)
    np.testing.assert_allclose(depth[seen], expected["depth"][seen], rtol=2e-2)
    assert estimate.focal_length_px == pytest.approx(float(expected["focal_length_px"]), rel=5e-3)


def test_a_known_focal_length_is_used(network: MoGe, expected: dict[str, Any]) -> None:
    focal_length_px = 60 / math.tan(math.radians(30))  # Half of the width under half of 60 degrees.
    estimate = MoGeEstimator(network, CPU)(source(120, 80, focal_length_px))
    depth = estimate.depth_m.ravel()[expected["pixel_index"]]
    seen = np.isfinite(depth)
    assert (seen == np.isfinite(expected["depth_fov_60"])).all()
    np.testing.assert_allclose(depth[seen], expected["depth_fov_60"][seen], rtol=2e-3)
    assert estimate.focal_length_px is None


def scene(num: int = 500, focal: float = 0.8, shift: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels in units of half the diagonal, and the points that project there after the shift."""
    rng = np.random.default_rng(1)
    plane, z = rng.uniform(-0.7, 0.7, (num, 2)), rng.uniform(1.0, 6.0, num)
    return plane, np.column_stack([plane * z[:, None] / focal, z - shift])


@pytest.mark.parametrize("shift", [-0.5, 0.0, 0.7])
def test_the_solver_finds_the_exact_shift_and_focal_length(shift: float) -> None:
    plane, points = scene(shift=shift)
    assert moge.solve_shift(plane, points, None) == pytest.approx((shift, 0.8), abs=1e-6)
    assert moge.solve_shift(plane, points, 0.8) == pytest.approx((shift, 0.8), abs=1e-6)


def test_the_solver_finds_the_minimum_of_noisy_points_like_scipy() -> None:
    plane, points = scene()
    points = points + np.random.default_rng(2).normal(scale=0.05, size=points.shape)

    def residual(parameters: np.ndarray) -> np.ndarray:
        shift, focal = parameters
        error: np.ndarray = focal * points[:, :2] / (points[:, 2:] + shift) - plane
        return error.ravel()

    best = least_squares(residual, x0=(0.5, 1.0), xtol=1e-14, ftol=1e-14, gtol=1e-14).x
    assert moge.solve_shift(plane, points, None) == pytest.approx(tuple(best), rel=1e-5)


def test_the_depth_of_a_large_image_has_its_size(network: MoGe, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = MoGeEstimator(network, CPU)(source(240, 160, 200.0)).depth_m
    monkeypatch.setattr(moge, "_MAX_OUTPUT_PIXELS", 120 * 80)
    coarse = MoGeEstimator(network, CPU)(source(240, 160, 200.0)).depth_m
    assert coarse.shape == exact.shape == (160, 240)
    seen = np.isfinite(exact) & np.isfinite(coarse)
    assert seen.any()
    assert np.median(np.abs(coarse[seen] / exact[seen] - 1)) < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"remap_output": "sinh"}, "remapped by 'sinh'"),
        ({"neck": {"res_block_in_norm": "layer_norm"}}, "norm 'layer_norm'"),
        ({"neck": {"resamplers": "pixel_shuffle"}}, "resampler 'pixel_shuffle'"),
        ({"neck": {"activation": "silu"}}, "activation 'silu'"),
    ],
)
def test_parts_that_are_unknown_are_refused(change: dict[str, Any], message: str) -> None:
    content = moge_checkpoint()
    for key, value in change.items():
        part = content["model_config"][key]
        content["model_config"][key] = {**part, **value} if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=message):
        moge.from_checkpoint(content)


def test_a_missing_tensor_is_refused() -> None:
    content = moge_checkpoint()
    del content["model"]["neck.res_blocks.1.0.layers.2.weight"]
    with pytest.raises(ValueError, match=r"neck\.res_blocks\.1\.0\.layers\.2\.weight is missing"):
        moge.from_checkpoint(content)

"""A given depth map in the place of SHARP's own: in the tiny network, and its parts against numpy and scipy."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import Tensor

from sharp_cog.errors import DepthError
from sharp_cog.geometry.camera import Camera
from sharp_cog.model.config import IMAGE_SIZE
from sharp_cog.model.external_depth import MAX_DEPTH_M, MIN_DEPTH_M, DepthUse, prepared, replaced, robust_line
from sharp_cog.model.lift import Lift
from sharp_cog.model.sharp import Sharp
from sharp_cog.runtime.unproject import unproject
from tests import parity

FACTOR = torch.tensor([60.0])
FIELDS = ("means", "scales", "quaternions_wxyz", "colors_linear", "opacities")


@pytest.fixture(scope="module")
def model() -> Sharp:
    """The tiny network, its disparities raised: with weights that nobody trained its depths span a factor of 2e5."""
    model = parity.network("tiny")
    bias = model.monodepth_model.monodepth_predictor.head[4].bias
    assert isinstance(bias, Tensor)
    bias.add_(30.0)
    return model


@pytest.fixture(scope="module")
def image() -> Tensor:
    return parity.Reference.load("tiny").image


@pytest.fixture(scope="module")
def own_m(model: Sharp, image: Tensor) -> Tensor:
    """SHARP's own depth, (1, 2, H, W)."""
    seen: list[Tensor] = []
    with torch.inference_mode():
        model(image, FACTOR, None, DepthUse(), seen.append)
    (depth_m,) = seen
    assert depth_m.shape == (1, 2, IMAGE_SIZE, IMAGE_SIZE)
    assert MIN_DEPTH_M < depth_m.min() < depth_m.max() < MAX_DEPTH_M / 3
    return depth_m


def relative_difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm() / second.norm())


def test_the_own_front_layer_by_ratio_changes_nothing(model: Sharp, image: Tensor, own_m: Tensor) -> None:
    with torch.inference_mode():
        plain = model(image, FACTOR)
        given = model(image, FACTOR, own_m[:, :1].clone(), DepthUse(mode="ratio"))
    for field in FIELDS:
        assert relative_difference(getattr(given, field), getattr(plain, field)) < 1e-5, field


def test_depth_times_k_moves_the_means_by_k_along_their_rays(model: Sharp, image: Tensor, own_m: Tensor) -> None:
    camera = Camera(width=1200, height=800, focal_length_px=1000.0)
    with torch.inference_mode():
        once, twice = (unproject(model(image, FACTOR, own_m[:, :1] * k, DepthUse()), camera).means for k in (1.0, 2.5))
    assert relative_difference(twice, 2.5 * once) < 1e-5
    with torch.inference_mode():
        scaled = unproject(model(image, FACTOR, own_m[:, :1], DepthUse(scale=2.5)), camera).means
    assert relative_difference(scaled, twice) < 1e-6


def test_what_is_unknown_comes_from_sharps_own_depth(
    model: Sharp, image: Tensor, own_m: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    holey = own_m[:, :1] * 3.0
    holey[..., 200:700, 300:900] = torch.nan
    with torch.inference_mode():
        whole = model(image, FACTOR, own_m[:, :1] * 3.0, DepthUse())
        filled = model(image, FACTOR, holey, DepthUse())
    assert relative_difference(filled.means, whole.means) < 1e-5
    assert "300000 of 2359296 pixels of the depth map are unknown" in caplog.text


def test_internal_depth_is_that_of_before(model: Sharp, image: Tensor, own_m: Tensor) -> None:
    seen: list[Tensor] = []
    with torch.inference_mode():
        model(image, FACTOR, torch.full((1, 1, IMAGE_SIZE, IMAGE_SIZE), 5.0), DepthUse(), seen.append)
    assert torch.equal(seen[0], own_m)


def test_lift_is_ratio_where_deltas_are_zero(image: Tensor) -> None:
    """A plane for both layers: the back layer's ratio is 1, and nothing moves."""
    depth_m = 2.0 + torch.rand(1, 1, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))
    own_m = torch.full((1, 2, IMAGE_SIZE, IMAGE_SIZE), 7.0)
    layers = replaced(own_m, prepared(depth_m, own_m[:, :1], DepthUse()), DepthUse())
    both, one = Lift()(image, FACTOR, layers[:, :1]), Lift()(image, FACTOR, depth_m)
    assert torch.equal(layers[:, 0], layers[:, 1])
    for field in FIELDS:
        assert torch.equal(getattr(both, field), getattr(one, field))
    behind = Lift()(image, FACTOR, depth_m, DepthUse(mode="fixed", back_surface_factor=1.5))
    front, back = behind.means[0].chunk(2)
    # The composer's own offset keeps 1 / z away from zero by 1e-3, in units of the nearest depth.
    assert relative_difference(back, 1.5 * front) < 2e-3


@pytest.mark.parametrize("use", [DepthUse(mode="align"), DepthUse(fit="median"), DepthUse(fit="affine")])
def test_lift_has_nothing_to_align_or_fit_to(image: Tensor, use: DepthUse) -> None:
    with pytest.raises(DepthError, match=r"no own depth|no depth of its own"):
        Lift()(image, FACTOR, torch.ones(1, 1, IMAGE_SIZE, IMAGE_SIZE), use)


def maps(seed: int = 0) -> tuple[Tensor, Tensor]:
    """SHARP's own front layer, a smooth one, and noise, (1, 1, 96, 128) each."""
    rows, columns = torch.meshgrid(torch.linspace(1, 2, 96), torch.linspace(1, 3, 128), indexing="ij")
    noise = torch.randn(96, 128, generator=torch.Generator().manual_seed(seed))
    return (rows * columns)[None, None], noise[None, None]


def test_modes_make_the_two_layers() -> None:
    own, _ = maps()
    own_m = torch.cat([own, own * 1.25], dim=1)
    given = torch.full_like(own, 4.0)
    assert torch.allclose(replaced(own_m, given, DepthUse()), torch.cat([given, given * 1.25], dim=1))
    fixed = replaced(own_m, given, DepthUse(mode="fixed", back_surface_factor=2.0))
    assert torch.equal(fixed, torch.cat([given, given * 2], dim=1))
    thin = own_m.clone()
    thin[:, 0, 0, 0] = 0.0
    assert replaced(thin, given, DepthUse())[0, 1, 0, 0] == pytest.approx(4 * own_m[0, 1, 0, 0].item() / 1e-4)


def test_scale_comes_before_offset_and_the_clamp_last() -> None:
    own, _ = maps()
    given = torch.full_like(own, 3.0)
    assert prepared(given, own, DepthUse(scale=2.0, offset_m=-1.0))[0, 0, 0, 0] == 5.0
    assert prepared(given, own, DepthUse(offset_m=-50.0)).max() == pytest.approx(0.001)
    assert prepared(given, own, DepthUse(scale=100.0)).min() == 100.0
    assert prepared(given, own, DepthUse(mode="align", scale=100.0)).min() == 300.0


def test_median_fit_is_one_factor() -> None:
    own, noise = maps()
    given = own * 0.4 * torch.exp(0.1 * noise)
    given[..., :30] = 20.0  # What the two see differently, less than half of all.
    fitted = prepared(given, own, DepthUse(fit="median"))
    factor = np.median((own / given).numpy())
    assert torch.allclose(fitted, given * factor, rtol=1e-4)


def test_affine_fit_finds_scale_and_shift_of_disparity_among_outliers() -> None:
    own, noise = maps()
    disparity = (1 / own - 0.05) / 3.0 + 1e-4 * noise
    given = 1 / disparity
    given[..., 100:] = 1.0  # A fifth of the map sees something else.
    given[..., :5, :] = torch.nan
    fitted = prepared(given, own, DepthUse(fit="affine"))
    same = torch.ones_like(own, dtype=torch.bool)
    same[..., 100:] = False
    assert (fitted / own - 1)[same].abs().max() < 0.02
    assert not fitted.isnan().any()


def test_affine_fit_of_what_runs_the_other_way_is_one_factor(caplog: pytest.LogCaptureFixture) -> None:
    own, _ = maps()
    caplog.set_level(logging.INFO)
    given = 1 / (1.2 - 1 / own)  # Near is far: a map given as the wrong format.
    fitted = prepared(given, own, DepthUse(fit="affine"))
    assert "does not agree with SHARP's own" in caplog.text
    assert torch.allclose(fitted, prepared(given, own, DepthUse(fit="median")))


def test_a_flat_map_fits_by_its_median() -> None:
    own, _ = maps()
    fitted = prepared(torch.full_like(own, 9.0), own, DepthUse(fit="affine"))
    assert torch.allclose(fitted, torch.full_like(own, np.median(own.numpy())), rtol=1e-2)


def test_robust_line_is_least_squares_where_nothing_is_far_off() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=5000)
    y = 2.5 * x - 0.75 + 0.01 * rng.normal(size=5000)
    np.testing.assert_allclose(robust_line(x, y), np.polyfit(x, y, 1), rtol=1e-3)
    y[:1500] += rng.uniform(5, 50, 1500)
    np.testing.assert_allclose(robust_line(x, y), (2.5, -0.75), rtol=2e-3)


def test_a_map_without_a_known_pixel_is_refused() -> None:
    own, _ = maps()
    with pytest.raises(DepthError, match="no known pixel"):
        prepared(torch.full_like(own, torch.nan), own, DepthUse())

"""An external depth map in place of monodepth: fits, modes and fills, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sharp_cog.errors import DepthError
from sharp_cog.model.external_depth import DepthUse, prepare, rank_correlation, replace_layers, robust_line


def maps(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a smooth front layer of monodepth, and noise, (1, 1, 96, 128) each."""
    rows, columns = torch.meshgrid(torch.linspace(1, 2, 96), torch.linspace(1, 3, 128), indexing="ij")
    noise = torch.randn(96, 128, generator=torch.Generator().manual_seed(seed))
    return (rows * columns)[None, None], noise[None, None]


def test_modes_make_the_two_layers() -> None:
    front, _ = maps()
    monodepth_m = torch.cat([front, front * 1.25], dim=1)
    external = torch.full_like(front, 4.0)
    layers = replace_layers(monodepth_m, external, DepthUse())
    assert torch.allclose(layers, torch.cat([external, external * 1.25], dim=1))
    fixed = replace_layers(monodepth_m, external, DepthUse(mode="fixed", back_surface_factor=2.0))
    assert torch.equal(fixed, torch.cat([external, external * 2], dim=1))


def test_a_front_depth_of_zero_does_not_make_the_back_layer_infinite() -> None:
    front, _ = maps()
    monodepth_m = torch.cat([front, front * 1.25], dim=1)
    monodepth_m[:, 0, 0, 0] = 0.0
    back = replace_layers(monodepth_m, torch.full_like(front, 4.0), DepthUse())[0, 1, 0, 0]
    assert back == pytest.approx(4 * monodepth_m[0, 1, 0, 0].item() / 1e-4)


def test_scale_comes_before_offset_and_the_clamp_last() -> None:
    front, _ = maps()
    external = torch.full_like(front, 3.0)
    assert prepare(external, front, DepthUse(scale=2.0, offset_m=-1.0))[0, 0, 0, 0] == 5.0
    assert prepare(external, front, DepthUse(offset_m=-50.0)).max() == pytest.approx(0.001)
    assert prepare(external, front, DepthUse(scale=100.0)).min() == 100.0
    assert prepare(external, front, DepthUse(mode="align", scale=100.0)).min() == 300.0


def test_median_fit_is_one_factor() -> None:
    front, noise = maps()
    external = front * 0.4 * torch.exp(0.1 * noise)
    external[..., :30] = 20.0  # The maps disagree on less than half of the pixels.
    fitted = prepare(external, front, DepthUse(fit="median"))
    factor = np.median((front / external).numpy())
    assert torch.allclose(fitted, external * factor, rtol=1e-4)


def test_affine_fit_finds_scale_and_shift_of_disparity_among_outliers() -> None:
    front, noise = maps()
    disparity = (1 / front - 0.05) / 3.0 + 1e-4 * noise
    external = 1 / disparity
    external[..., 100:] = 1.0  # A fifth of the map shows something else.
    external[..., :5, :] = torch.nan
    fitted = prepare(external, front, DepthUse(fit="affine"))
    same = torch.ones_like(front, dtype=torch.bool)
    same[..., 100:] = False
    assert (fitted / front - 1)[same].abs().max() < 0.02
    assert not fitted.isnan().any()


@pytest.mark.parametrize(("is_assumed", "word"), [(True, "assumed"), (False, "named")])
def test_an_affine_fit_that_would_turn_the_scene_inside_out_is_refused(is_assumed: bool, word: str) -> None:
    front, _ = maps()
    external = 1 / (1.2 - 1 / front)  # Near is far: the map was read in the wrong format.
    use = DepthUse(fit="affine", is_assumed=is_assumed, other_format="metric or relative")
    with pytest.raises(DepthError, match=f"something else than was {word}: set depth_format to metric or relative"):
        prepare(external, front, use)


@pytest.mark.parametrize("fit", ["none", "median"])
def test_an_assumed_map_in_the_opposite_order_of_monodepth_is_refused_without_a_fit_too(
    fit: str, caplog: pytest.LogCaptureFixture
) -> None:
    front, noise = maps()
    external = 5 / front * torch.exp(0.1 * noise)
    external[..., :20, :] = torch.nan
    with pytest.raises(DepthError, match=r"rank correlation -0\.\d+\).*assumed: set depth_format to inverse-relative"):
        prepare(external, front, DepthUse(fit=fit, is_assumed=True))
    assert not caplog.records
    assert prepare(external, front, DepthUse(fit=fit)).isfinite().all()
    assert "is depth_format inverse-relative right?" in caplog.text


def test_an_assumed_map_that_merely_differs_from_monodepth_is_used() -> None:
    front, noise = maps()
    for external in (front * torch.exp(0.5 * noise), 3 + noise.abs(), torch.full_like(front, 2.0)):
        assert torch.equal(prepare(external, front, DepthUse(is_assumed=True)), external)


def test_rank_correlation_is_spearmans_with_shared_ranks() -> None:
    x, y = np.array([1.0, 2, 2, 40]), np.array([-7.0, 3, 2, 4])
    ranks = [1, 2.5, 2.5, 4], [1, 3, 2, 4]
    assert rank_correlation(x, y) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert rank_correlation(x, -y) == -rank_correlation(x, y)
    assert rank_correlation(x, np.zeros(4)) == 0


def test_a_flat_map_fits_by_its_median() -> None:
    front, _ = maps()
    fitted = prepare(torch.full_like(front, 9.0), front, DepthUse(fit="affine"))
    assert torch.allclose(fitted, torch.full_like(front, np.median(front.numpy())), rtol=1e-2)


def test_robust_line_is_least_squares_without_outliers_and_ignores_them() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=5000)
    y = 2.5 * x - 0.75 + 0.01 * rng.normal(size=5000)
    np.testing.assert_allclose(robust_line(x, y), np.polyfit(x, y, 1), rtol=1e-3)
    y[:1500] += rng.uniform(5, 50, 1500)
    np.testing.assert_allclose(robust_line(x, y), (2.5, -0.75), rtol=2e-3)


def test_unknown_pixels_are_filled_from_monodepth_at_the_maps_scale(caplog: pytest.LogCaptureFixture) -> None:
    front, _ = maps()
    external = front * 3.0
    external[..., 20:40, 50:80] = torch.nan
    torch.testing.assert_close(prepare(external, front, DepthUse()), front * 3.0)
    assert "600 of 12288 pixels of the depth map are unknown and were filled from SHARP's monodepth, times 3" in (
        caplog.text
    )


def test_a_map_without_a_known_pixel_is_refused() -> None:
    front, _ = maps()
    with pytest.raises(DepthError, match="no known pixel"):
        prepare(torch.full_like(front, torch.nan), front, DepthUse())


@pytest.mark.parametrize("fit", ["median", "affine"])
def test_without_monodepth_there_is_nothing_to_fit_to(fit: str) -> None:
    with pytest.raises(DepthError, match=f"depth_fit is '{fit}', but this model has no monodepth"):
        prepare(torch.ones(1, 1, 4, 4), None, DepthUse(fit=fit))

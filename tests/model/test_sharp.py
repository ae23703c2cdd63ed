"""The whole network: every stage against the arrays that Apple's own code computed, and external depth in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.model.config import SharpConfig
from sharp_cog.model.external_depth import MAX_DEPTH_M, MIN_DEPTH_M, DepthUse
from sharp_cog.model.monodepth import depth_from_disparity
from sharp_cog.model.sharp import UNUSED_PARAMETERS, Sharp
from sharp_cog.runtime.unproject import unproject
from sharp_cog.runtime.verify import GAUSSIAN_FIELDS
from tests import parity
from tests.parity import REFERENCE_NAMES, Reference, relative_error, run, shapes

LIMIT = 1e-4


Run = tuple[str, dict[str, float], NDCGaussians]


@pytest.fixture(scope="module", params=["tiny", "tiny_aligned"])
def tiny_run(request: pytest.FixtureRequest) -> Run:
    name: str = request.param
    errors, ndc = run(parity.network("tiny"), Reference.load(name), aligned=name == "tiny_aligned")
    return name, errors, ndc


@pytest.mark.parametrize("variant", ["tiny", "full"])
def test_names_and_shapes_are_those_of_the_checkpoint(variant: str) -> None:
    with torch.device("meta"):
        model = Sharp(SharpConfig.tiny() if variant == "tiny" else SharpConfig.released())
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = shapes(variant)
    assert len(theirs) == {"tiny": 477, "full": 1038}[variant]
    assert theirs.keys() - ours.keys() == UNUSED_PARAMETERS
    assert ours == {name: shape for name, shape in theirs.items() if name not in UNUSED_PARAMETERS}


def test_the_tiny_network_computes_apples_numbers(tiny_run: Run) -> None:
    name, errors, _ = tiny_run
    _assert_parity(errors, aligned=name == "tiny_aligned")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_full_network_computes_apples_numbers() -> None:
    errors, _ = run(parity.network("full"), Reference.load("full"))
    _assert_parity(errors, aligned=False)


def _assert_parity(errors: dict[str, float], *, aligned: bool) -> None:
    expected = {"input", "monodepth", *REFERENCE_NAMES.values()}
    assert errors.keys() == (expected if aligned else expected - {"alignment_map"})
    too_large = {name: error for name, error in errors.items() if not error <= LIMIT}
    assert not too_large, f"relative errors over {LIMIT}: {too_large}; all: {errors}"


def test_metric_gaussians_are_apples(tiny_run: Run) -> None:
    """Means, scales and covariances agree; axes and quaternions have no unique sign."""
    name, _, ndc = tiny_run
    reference = Reference.load(name)
    gaussians = unproject(ndc, reference.camera)
    index = torch.from_numpy(reference.arrays["gaussian_index"])
    scales = gaussians.scales[index].double().numpy()
    rotation = Rotation.from_quat(gaussians.quaternions_wxyz[index].double().numpy(), scalar_first=True).as_matrix()
    axes = rotation * scales[:, None, :]
    covariances = axes @ axes.transpose(0, 2, 1)
    assert relative_error(gaussians.means[index].numpy(), reference.arrays["mean_vectors"]) <= LIMIT
    assert relative_error(np.sort(scales), np.sort(reference.arrays["singular_values"])) <= LIMIT
    assert relative_error(covariances, reference.arrays["covariances"]) <= LIMIT


FACTOR = torch.tensor([60.0])
"""Focal length over width that puts the depths of `model` between 1 and 30 m."""


@pytest.fixture(scope="module")
def model() -> Sharp:
    """Return the small network with disparities raised: those of its random weights span a factor of 2e5."""
    model = parity.small_network()
    bias = model.monodepth_model.monodepth_predictor.head[4].bias
    assert isinstance(bias, Tensor)
    bias.add_(30.0)
    return model


@pytest.fixture(scope="module")
def image() -> Tensor:
    return parity.small_input().image


@pytest.fixture(scope="module")
def monodepth_m(model: Sharp, image: Tensor) -> Tensor:
    with torch.inference_mode():
        depth_m = depth_from_disparity(model.encode(image).disparity, FACTOR)
    assert depth_m.shape == (1, 2, 512, 512)
    assert MIN_DEPTH_M < depth_m.min() < depth_m.max() < MAX_DEPTH_M / 3
    return depth_m


def difference(first: Tensor, second: Tensor) -> float:
    return relative_error(first.numpy(), second.numpy())


@torch.inference_mode()
def test_the_front_layer_of_monodepth_as_external_depth_changes_nothing(
    model: Sharp, image: Tensor, monodepth_m: Tensor
) -> None:
    plain = model(image, FACTOR)
    external = model(image, FACTOR, monodepth_m[:, :1].clone(), DepthUse(mode="ratio"))
    for field in GAUSSIAN_FIELDS:
        assert difference(getattr(external, field), getattr(plain, field)) < 1e-5, field


@torch.inference_mode()
def test_scaling_the_depth_moves_the_means_along_their_rays(model: Sharp, image: Tensor, monodepth_m: Tensor) -> None:
    camera = Camera(width=1200, height=800, focal_length_px=1000.0)
    front_m = monodepth_m[:, :1]
    once, twice, by_option = (
        unproject(model(image, FACTOR, depth_m, use), camera).means
        for depth_m, use in ((front_m, DepthUse()), (front_m * 2.5, DepthUse()), (front_m, DepthUse(scale=2.5)))
    )
    assert difference(twice, 2.5 * once) < 1e-5
    assert difference(by_option, twice) < 1e-6


@torch.inference_mode()
def test_unknown_pixels_come_from_monodepth(
    model: Sharp, image: Tensor, monodepth_m: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    whole = monodepth_m[:, :1] * 3.0
    holey = whole.clone()
    holey[..., 100:200, 200:300] = torch.nan
    expected, filled = (model(image, FACTOR, depth_m, DepthUse()) for depth_m in (whole, holey))
    assert difference(filled.means, expected.means) < 1e-5
    assert "10000 of 262144 pixels of the depth map are unknown" in caplog.text


@torch.inference_mode()
def test_a_plane_as_external_depth_is_a_plane_for_both_layers(model: Sharp) -> None:
    """With equal layers of monodepth, the ratio is 1, and the depth map serves both."""
    depth_m = 2.0 + torch.rand(1, 1, 512, 512, generator=torch.Generator().manual_seed(1))
    layers = model.depth_layers(torch.full((1, 2, 512, 512), 7.0), depth_m, DepthUse())
    assert torch.equal(layers, depth_m.expand(-1, 2, -1, -1))

"""Every stage of our network against the arrays that Apple's own code computed in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.model.config import SharpConfig
from sharp_cog.model.sharp import UNUSED_PARAMETERS, Sharp
from sharp_cog.runtime.unproject import unproject
from tests.parity import REFERENCE_NAMES, Reference, network, relative_error, run, shapes

LIMIT = 1e-4


Run = tuple[str, dict[str, float], NDCGaussians]


@pytest.fixture(scope="module", params=["tiny", "tiny_aligned"])
def tiny_run(request: pytest.FixtureRequest) -> Run:
    name: str = request.param
    errors, ndc = run(network("tiny"), Reference.load(name), aligned=name == "tiny_aligned")
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
    assert SharpConfig.matching(theirs) == model.config


def test_tiny_network_gives_apples_numbers(tiny_run: Run) -> None:
    name, errors, _ = tiny_run
    _assert_parity(errors, aligned=name == "tiny_aligned")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_full_network_gives_apples_numbers() -> None:
    errors, _ = run(network("full"), Reference.load("full"))
    _assert_parity(errors, aligned=False)


def _assert_parity(errors: dict[str, float], *, aligned: bool) -> None:
    expected = {"input", "monodepth", *REFERENCE_NAMES.values()}
    assert errors.keys() == (expected if aligned else expected - {"alignment_map"})
    too_large = {name: error for name, error in errors.items() if not error <= LIMIT}
    assert not too_large, f"relative errors over {LIMIT}: {too_large}; all: {errors}"


def test_metric_gaussians_are_apples(tiny_run: Run) -> None:
    """Means, scales and covariances, since axes and quaternions have no unique sign."""
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

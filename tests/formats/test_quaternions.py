"""Quaternions without their largest component, and repaired ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sharp_cog.formats.quaternions import drop_largest, restore_largest, to_unit
from tests.splats import degrees_between, random_gaussians


def test_the_largest_component_follows_from_the_others() -> None:
    quaternions = random_gaussians(500).quaternions_wxyz
    largest, others = drop_largest(quaternions.t())
    assert torch.equal(largest, quaternions.abs().argmax(dim=1))
    assert others.abs().max() <= 0.5**0.5
    restored = restore_largest(largest, others.t())
    assert degrees_between(restored.numpy(), quaternions.numpy()).max() < 0.06
    assert (restored.gather(1, largest.unsqueeze(1)) > 0).all()


@pytest.mark.parametrize(
    ("quaternion", "expected"),
    [
        ((0.0, 0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0)),
        ((-2.0, 0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0)),
        ((0.0, -3.0, 0.0, 4.0), (0.0, -0.6, 0.0, 0.8)),
        ((-1.0, 1.0, -1.0, 1.0), (0.5, -0.5, 0.5, -0.5)),
    ],
)
def test_any_quaternion_becomes_unit_with_a_positive_real_part(
    quaternion: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    np.testing.assert_allclose(to_unit(torch.tensor([quaternion]))[0], expected, atol=1e-7)

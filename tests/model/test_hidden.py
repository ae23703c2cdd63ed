"""Hidden surfaces: where they are, and that they continue the background."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch

from sharp_cog.model.hidden import grow, push_pull, shrink


@pytest.mark.parametrize("radius", [1, 3])
def test_growing_and_shrinking_are_the_filters_of_scipy(radius: int) -> None:
    values = np.random.default_rng(0).normal(size=(17, 23))
    size = 2 * radius + 1
    grown, shrunk = (change(torch.from_numpy(values), radius).numpy() for change in (grow, shrink))
    np.testing.assert_array_equal(grown, scipy.ndimage.maximum_filter(values, size, mode="nearest"))
    np.testing.assert_array_equal(shrunk, scipy.ndimage.minimum_filter(values, size, mode="nearest"))
    mask = torch.from_numpy(values > 1.5)
    np.testing.assert_array_equal(grow(mask, radius), scipy.ndimage.binary_dilation(mask, np.ones((size, size))))


def test_push_pull_keeps_what_is_known_and_fills_the_rest_between_its_values() -> None:
    generator = torch.Generator().manual_seed(1)
    values, weights = torch.rand(2, 37, 50, generator=generator), torch.ones(37, 50)
    weights[5:30, 10:41] = 0.0
    filled = push_pull(values, weights)
    assert torch.equal(filled[:, weights > 0], values[:, weights > 0])
    assert filled.min() >= 0
    assert filled.max() <= 1
    # A constant is continued as it is, from however few cells.
    weights[:] = 0.0
    weights[3, 7] = 1.0
    torch.testing.assert_close(push_pull(torch.full((1, 37, 50), 0.3), weights), torch.full((1, 37, 50), 0.3))

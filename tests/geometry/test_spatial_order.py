"""The order along a space-filling curve, against Morton codes computed bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sharp_cog.geometry.spatial_order import canonical_order, order, positions_on_curve


def points_of(values: np.ndarray) -> list[torch.Tensor]:
    return [*torch.from_numpy(values.astype(np.float32)).T.contiguous()]


def positions(values: np.ndarray, shift: float = 0.0) -> torch.Tensor:
    zero = torch.zeros(())
    return positions_on_curve(points_of(values), [zero, zero, zero], torch.ones(()), shift)


def test_positions_interleave_the_bits_of_contracted_coordinates() -> None:
    values = np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32) * 10
    contracted = values / (1 + np.abs(values)) + np.float32(1)
    cells = (contracted * np.float32(2**17 / 3)).astype(np.int64)
    expected = [
        sum(((int(cell[axis]) >> bit) & 1) << (3 * bit + axis) for axis in range(3) for bit in range(17)) << 12
        for cell in cells
    ]
    assert positions(values).tolist() == expected


def test_neighbours_in_space_are_near_each_other_on_the_curve() -> None:
    """On a grid of 64 x 64, most points have one of their four neighbours next to them on the curve."""
    grid = np.stack(np.meshgrid(np.arange(64), np.arange(64), [0.0]), axis=-1).reshape(-1, 3) / 64
    path = grid[order(positions(grid)).numpy()] * 64
    steps = np.abs(np.diff(path, axis=0)).sum(axis=1)
    assert np.mean(steps < 1.5) > 0.45
    assert np.mean(steps < 3.5) > 0.8


@pytest.mark.parametrize("size", [0.0, 1e-30, 1.0, 1e30, 3e38])
def test_any_finite_position_has_a_place_on_the_curve(size: float) -> None:
    values = np.random.default_rng(0).standard_normal((50, 3)).clip(-1, 1) * size
    found = positions(values, 0.7)
    assert found.min() >= 0
    assert len(order(found)) == 50


def test_the_canonical_order_does_not_depend_on_the_order_of_the_input() -> None:
    """Many points share a cell, and 12 bits of a hash do not tell all of these apart."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(20_000, 4, generator=generator) * 1e-6
    sorted_values = []
    for permutation in (torch.arange(20_000), torch.randperm(20_000, generator=generator)):
        fields = [*values[permutation].T.contiguous()]
        zero = torch.zeros(())
        along = positions_on_curve(fields[:3], [zero, zero, zero], torch.ones(()), 0.0)
        sorted_values.append(values[permutation][canonical_order(along, fields)])
    assert torch.equal(*sorted_values)

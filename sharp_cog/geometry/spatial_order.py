"""An order of points along a space-filling curve, in which neighbours in space are mostly near each other."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

_AXIS_BITS = 17
"""Bits of each coordinate on the curve."""
_HASH_BITS = 12
"""Bits below the curve's, in which a hash tells points in one cell apart: 3 x 17 + 12 = 63 bits."""
_TABLE_BITS = 9
"""Bits of a coordinate that one look-up spreads."""


def positions_on_curve(points: list[Tensor], centre: list[Tensor], unit: Tensor, shift: float) -> Tensor:
    """Compute each point's position on the Z-order curve (Morton, 1966), with room for a hash below.

    Space is contracted first, so that a few far points do not leave only a few cells to all the others: a distance t
    from the centre, in units, becomes t / (1 + t).

    Args:
        points: The three coordinates, each (N,).
        centre: The three coordinates of the centre.
        unit: Distance from the centre that is contracted to one half.
        shift: Movement of the cells, from 0 to 1. Neighbours that the curve separates with one shift are mostly
            together with another.

    Returns:
        (N,) int64, from 0 to 2^63, the last `_HASH_BITS` bits 0.
    """
    table = _spread(points[0].device)
    positions = torch.zeros_like(points[0], dtype=torch.int64)
    # The contracted range is 2, and 1 more is left for the shift.
    steps = 2.0**_AXIS_BITS / 3.0
    last = 2**_AXIS_BITS - 1
    for axis, (coordinate, middle) in enumerate(zip(points, centre, strict=True)):
        offset = (coordinate - middle).div_(unit)
        # Different shifts along the axes, so that the borders of cells do not stay on one diagonal.
        contracted = offset.div_(offset.abs().add_(1.0)).add_(1.0 + (shift * (axis + 1)) % 1.0).mul_(steps)
        cell = contracted.nan_to_num_(0.0).to(torch.int64).clamp_(0, last)
        spread = table[cell >> _TABLE_BITS] << (3 * _TABLE_BITS) | table[cell & (2**_TABLE_BITS - 1)]
        positions |= spread << (axis + _HASH_BITS)
    return positions


@cache
def _spread(device: torch.device) -> Tensor:
    """Return the table of numbers with two zero bits after each of their bits."""
    numbers = torch.arange(2**_TABLE_BITS)
    spread = torch.zeros_like(numbers)
    for bit in range(_TABLE_BITS):
        spread |= (numbers >> bit & 1) << (3 * bit)
    return spread.to(device)


def order(keys: Tensor) -> Tensor:
    """Return the indices that sort keys (N,) int64; the order of equal keys is always the same, but undefined."""
    if keys.device.type == "cpu":
        # Three times as fast as torch's sort.
        return torch.from_numpy(np.argsort(keys.numpy()))
    return torch.sort(keys, stable=True).indices


def canonical_order(positions: Tensor, fields: list[Tensor]) -> Tensor:
    """Return the order along the curve, the same for the same points in whatever order they come.

    Args:
        positions: `positions_on_curve` of N points.
        fields: All that tells points apart, each (N,) float32.
    """
    hashes = _hashes(fields)
    keys = positions | hashes & (2**_HASH_BITS - 1)
    indices = order(keys)
    sorted_keys, sorted_hashes = keys[indices], hashes[indices]
    is_tied = (sorted_keys[1:] == sorted_keys[:-1]) & (sorted_hashes[1:] != sorted_hashes[:-1])
    if bool(is_tied.any()):
        # Rare: different points in the same cell, whose hashes end alike.
        by_hash = torch.sort(hashes, stable=True).indices
        indices = by_hash[torch.sort(positions[by_hash], stable=True).indices]
    return indices


def _hashes(fields: list[Tensor]) -> Tensor:
    """Return a number for each point that depends on the bits of all its fields, (N,) int64."""
    hashes = torch.zeros_like(fields[0], dtype=torch.int64)
    for field in fields:
        # Zero has two representations.
        bits = (field + 0.0).view(torch.int32).to(torch.int64)
        # Multiplication by an odd number, and the xor of the upper half with the lower one, lose nothing (Steele et
        # al., "Fast Splittable Pseudorandom Number Generators", 2014); products wrap around.
        hashes = (hashes ^ bits).mul_(-0x61C8864680B583EB)
        hashes ^= hashes >> 32
    return hashes

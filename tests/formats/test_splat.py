"""The parts of a .splat that test_registry.py does not see: the order, and broken records."""

from __future__ import annotations

import numpy as np
import pytest

from sharp_cog.errors import SplatError
from sharp_cog.formats.splat import RECORD, read_splat
from tests.formats.cases import decode, written
from tests.splats import random_gaussians


def test_the_most_important_gaussians_come_first() -> None:
    decoded = decode("splat", written("splat", random_gaussians(400)))
    importance = decoded.scales.prod(axis=1) * decoded.opacities
    error = decoded.scales.prod(axis=1) * 0.51 / 255  # Opacities have 8 bits.
    assert (importance[:-1] + error[:-1] >= importance[1:] - error[1:]).all()


def test_tiny_gaussians_are_sorted_although_their_volume_underflows() -> None:
    gaussians = random_gaussians(3)
    gaussians.scales.copy_(gaussians.scales.new_tensor([[1e-20] * 3, [1e-18] * 3, [1e-19] * 3]))
    gaussians.opacities.fill_(0.5)
    np.testing.assert_allclose(decode("splat", written("splat", gaussians)).scales[:, 0], [1e-18, 1e-19, 1e-20])


def test_quaternions_of_zero_are_no_rotation() -> None:
    records = np.zeros(1, dtype=RECORD)
    records["quaternion_wxyz"] = 128
    assert read_splat(records.tobytes()).gaussians.quaternions_wxyz.tolist() == [[1.0, 0.0, 0.0, 0.0]]


def test_broken_records_are_refused() -> None:
    whole = written("splat", random_gaussians(4))
    with pytest.raises(SplatError, match=r"127 bytes, not a multiple of 32: it is truncated or not a \.splat"):
        read_splat(whole[:-1])
    for field, value, message in (("scales", -1.0, "1 of 4 Gaussians of the .splat have negative scales"),):
        records = np.frombuffer(whole, RECORD).copy()
        records[field][2, 1] = value
        with pytest.raises(SplatError, match=message):
            read_splat(records.tobytes())

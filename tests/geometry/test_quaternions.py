"""Signs of quaternions."""

from __future__ import annotations

import torch

from sharp_cog.geometry.quaternions import canonicalize


def test_the_real_part_is_not_negative_and_the_rotation_stays() -> None:
    quaternions = torch.nn.functional.normalize(torch.randn(100, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    canonical = canonicalize(quaternions)
    assert (canonical[:, 0] >= 0).all()
    torch.testing.assert_close((canonical * quaternions).sum(-1).abs(), torch.ones(100))
    assert torch.equal(canonicalize(-quaternions), canonical)
    assert torch.equal(canonicalize(canonical), canonical)


def test_a_real_part_of_zero_stays_as_it_is() -> None:
    quaternions = torch.tensor([[0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.6, -0.8]])
    assert torch.equal(canonicalize(quaternions), quaternions)
    assert canonicalize(torch.empty(0, 4)).shape == (0, 4)

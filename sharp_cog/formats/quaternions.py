"""Unit quaternions as files hold them: often without the largest component, which follows from the other three."""

from __future__ import annotations

import torch
from torch import Tensor

from sharp_cog.geometry.quaternions import canonicalize

_OTHER_COMPONENTS = ((1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2))
"""Indices of the components that are stored, by the index of the largest one."""


def drop_largest(quaternions: Tensor) -> tuple[Tensor, Tensor]:
    """Split unit quaternions into the index of their largest component and the other three components.

    Args:
        quaternions: (4, N), components in any order.

    Returns:
        Indices (N,) int64; and the others (3, N), each within plus and minus sqrt(1/2). Their signs are those of the
        quaternion whose largest component is positive: q and -q are the same rotation.
    """
    largest = quaternions.abs().argmax(dim=0, keepdim=True)
    others = torch.tensor(_OTHER_COMPONENTS).t()[:, largest[0]]
    # The largest component of a unit quaternion is at least 1/2, so its sign is never 0.
    return largest[0], quaternions.gather(0, others).mul_(quaternions.gather(0, largest).sign_())


def restore_largest(largest: Tensor, others: Tensor) -> Tensor:
    """Reverse `drop_largest`.

    Args:
        largest: (N,) int64.
        others: (N, 3).

    Returns:
        (N, 4), unit up to the precision of `others`.
    """
    quaternions = torch.empty(len(largest), 4)
    quaternions.scatter_(1, torch.tensor(_OTHER_COMPONENTS)[largest], others)
    # Stored components are rounded, so their squares may add up to more than 1.
    remainder = (1.0 - others.square().sum(dim=1)).clamp_(min=0.0).sqrt_()
    return quaternions.scatter_(1, largest.unsqueeze(1), remainder.unsqueeze(1))


def to_unit(quaternions_wxyz: Tensor) -> Tensor:
    """Return unit quaternions (N, 4) with w >= 0; four zeros, which only broken files hold, become no rotation."""
    # Other tools write quaternions of any length. Squares of very large or small components would over- or underflow.
    largest = quaternions_wxyz.abs().amax(dim=1, keepdim=True)
    is_ordinary = (largest > 1e-9) & (largest < 1e9)
    identity = quaternions_wxyz.new_tensor([1.0, 0.0, 0.0, 0.0])
    scaled = torch.where(largest == 0, identity, quaternions_wxyz / torch.where(is_ordinary, 1.0, largest))
    return canonicalize(torch.nn.functional.normalize(scaled, dim=1))

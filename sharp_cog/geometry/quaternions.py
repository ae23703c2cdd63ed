"""Unit quaternions in the order w, x, y, z, with the real part first."""

from __future__ import annotations

import torch
from torch import Tensor


def canonicalize(quaternions_wxyz: Tensor) -> Tensor:
    """Return the quaternions (N, 4) with w >= 0, since q and -q are the same rotation."""
    return quaternions_wxyz * torch.where(quaternions_wxyz[:, :1] < 0, -1.0, 1.0)

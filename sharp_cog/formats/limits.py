"""What may be written at all, whatever the format: the ranges of a Gaussian's values, and what lies beyond them.

A position, a quaternion or anything that is not finite has no nearest good value, and is refused. Scales, colours and
opacities have one, which is written: see `sharp_cog.formats.ply.vertex_block`. A format may hold less than this; its
writer says what.
"""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from sharp_cog.errors import PredictionError
from sharp_cog.geometry.gaussians import Gaussians

MIN_OPACITY = torch.finfo(torch.float32).tiny
MAX_OPACITY = 1.0 - torch.finfo(torch.float32).eps / 2
"""The largest float32 below 1; its logit is 16.6."""
MIN_SCALE_M = torch.finfo(torch.float32).tiny
MAX_LENGTH_M = 1e38
"""Of positions' coordinates and scales: below it, differences and exponentials of logarithms are finite in float32."""
MAX_UNIT_ERROR = 1e-4
"""By how much a quaternion's length may differ from 1; what float32's rounding leaves is a thousandth of it."""


def require_writable(gaussians: Gaussians) -> None:
    """Checks Gaussians before they are written; waits for their device once.

    Raises:
        PredictionError: A value is not finite, a position is beyond `MAX_LENGTH_M`, or a quaternion is not unit.
    """
    if not len(gaussians):
        return
    # A sum sees every NaN and infinity, and only then it is worth looking for them.
    total = torch.stack([getattr(gaussians, field.name).sum() for field in fields(gaussians)]).sum()
    nearest, farthest = gaussians.means.aminmax()
    shortest, longest = _lengths(gaussians).aminmax()
    is_good = (
        total.isfinite()
        & (torch.maximum(-nearest, farthest) <= MAX_LENGTH_M)
        & (torch.maximum(1.0 - shortest, longest - 1.0) <= MAX_UNIT_ERROR)
    )
    if not is_good.item():
        _find(gaussians)


def _lengths(gaussians: Gaussians) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(gaussians.quaternions_wxyz, dim=1)
    return lengths


def _find(gaussians: Gaussians) -> None:
    """Says what is wrong; nothing is where the sum of finite values was too large."""
    num = len(gaussians)
    named = {field.name: getattr(gaussians, field.name) for field in fields(gaussians)}
    bad = {name: ~values.isfinite().reshape(num, -1).all(dim=1) for name, values in named.items()}
    names = [name for name, is_bad in bad.items() if is_bad.any()]
    if names:
        num_bad = int(torch.stack(list(bad.values())).any(dim=0).sum())
        raise PredictionError(
            f"{num_bad} of {num} Gaussians are not finite, in {', '.join(names)}: nothing was written; this is a fault "
            "of the model or the device, not of the picture"
        )
    is_far = (gaussians.means.abs() > MAX_LENGTH_M).any(dim=1)
    if is_far.any():
        raise PredictionError(
            f"{int(is_far.sum())} of {num} Gaussians are up to {gaussians.means.abs().max().item():.3g} m away, the "
            f"limit is {MAX_LENGTH_M:g} m: nothing was written; make the scene smaller"
        )
    lengths = _lengths(gaussians)
    is_askew = ~((lengths - 1.0).abs() <= MAX_UNIT_ERROR)
    if is_askew.any():
        raise PredictionError(
            f"{int(is_askew.sum())} of {num} Gaussians have quaternions that are not unit, the first has length "
            f"{lengths[is_askew][0].item():.6g}, the limit is {MAX_UNIT_ERROR:g} beside 1: nothing was written; "
            "normalise them"
        )

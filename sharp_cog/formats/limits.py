"""Ranges of a Gaussian's values that can be written, whatever the format.

Values that are not finite, positions out of range and quaternions that are not unit are refused, because no nearby
value would be right. Scales and opacities out of range become the nearest value in range: see
`sharp_cog.formats.ply.vertex_block`. Some formats have narrower ranges, which their writers document.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sharp_cog.errors import PredictionError
from sharp_cog.geometry.gaussians import Gaussians

MIN_OPACITY = torch.finfo(torch.float32).tiny
"""Smallest opacity that is written: the smallest normal float32, whose logit is finite."""
MAX_OPACITY = 1.0 - torch.finfo(torch.float32).eps / 2
"""Largest opacity that is written: the largest float32 below 1, whose logit is 16.6."""
MIN_SCALE_M = torch.finfo(torch.float32).tiny
"""Smallest scale that is written, in metres."""
MAX_LENGTH_M = 1e38
"""Largest coordinate and scale, in metres: differences and exponentials of logarithms stay finite in float32."""
MAX_EXPANDED_GAUSSIANS = 10_000_000
"""Maximum number of Gaussians that are read from a format that stores many of them in few bytes."""
MAX_UNIT_ERROR = 1e-4
"""Maximum difference of a quaternion's length from 1; rounding in float32 causes a thousandth of it."""


def require_writable(gaussians: Gaussians) -> None:
    """Check Gaussians before they are written; waits for their device once.

    Raises:
        PredictionError: A value is not finite, a position is beyond `MAX_LENGTH_M`, or a quaternion is not unit.
    """
    if not len(gaussians):
        return
    # A sum is not finite if any value is not, and one sum is cheap. The slow search for the culprit comes after.
    total = torch.stack([values.sum() for values in gaussians.tensors().values()]).sum()
    nearest, farthest = gaussians.means.aminmax()
    shortest, longest = _lengths(gaussians).aminmax()
    # All of this stays on the device; `item` is the only wait.
    is_good = (
        total.isfinite()
        & (torch.maximum(-nearest, farthest) <= MAX_LENGTH_M)
        & (torch.maximum(1.0 - shortest, longest - 1.0) <= MAX_UNIT_ERROR)
    )
    if not is_good.item():
        _raise_for_fault(gaussians)


def _lengths(gaussians: Gaussians) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(gaussians.quaternions_wxyz, dim=1)
    return lengths


def _raise_for_fault(gaussians: Gaussians) -> None:
    """Find the fault and raise it; a sum of finite values may also overflow, and that is no fault."""
    num = len(gaussians)
    bad = {name: ~values.isfinite().reshape(num, -1).all(dim=1) for name, values in gaussians.tensors().items()}
    names = [name for name, is_bad in bad.items() if is_bad.any()]
    if names:
        num_bad = int(torch.stack(list(bad.values())).any(dim=0).sum())
        raise PredictionError(
            f"{num_bad} of {num} Gaussians are not finite, in {', '.join(names)}: nothing was written; this is a fault "
            "of the model or the device, not of the image"
        )
    is_far = (gaussians.means.abs() > MAX_LENGTH_M).any(dim=1)
    if is_far.any():
        raise PredictionError(
            f"{int(is_far.sum())} of {num} Gaussians are up to {gaussians.means.abs().max().item():.3g} m away, the "
            f"limit is {MAX_LENGTH_M:g} m: nothing was written; lower scale"
        )
    lengths = _lengths(gaussians)
    is_bad_length = ~((lengths - 1.0).abs() <= MAX_UNIT_ERROR)
    if is_bad_length.any():
        raise PredictionError(
            f"{int(is_bad_length.sum())} of {num} Gaussians have quaternions that are not unit, the first has the "
            f"length {lengths[is_bad_length][0].item():.6g}, lengths must be within {MAX_UNIT_ERROR:g} of 1: nothing "
            "was written; normalise them"
        )

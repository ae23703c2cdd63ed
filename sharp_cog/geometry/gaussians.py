"""The two kinds of Gaussians in the pipeline: those of the network, and those of a metric scene.

This module must stay importable without torch, so it only names tensors in annotations and never creates one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Size of the last dimension of each field; None for a field without one.
_CHANNELS = {"means": 3, "scales": 3, "quaternions_wxyz": 4, "colors_linear": 3, "opacities": None}


def _check_shapes(gaussians: NDCGaussians | Gaussians, num_leading: int) -> None:
    """Check that all fields agree in their leading dimensions and have the right number of channels."""
    leading = tuple(gaussians.means.shape[:-1])
    if len(leading) != num_leading:
        raise ValueError(f"means has shape {tuple(gaussians.means.shape)}, expected {num_leading + 1} dimensions")
    for field in fields(gaussians):
        channels = _CHANNELS[field.name]
        expected = leading if channels is None else (*leading, channels)
        shape = tuple(getattr(gaussians, field.name).shape)
        if shape != expected:
            raise ValueError(f"{field.name} has shape {shape}, expected {expected}")


@dataclass(frozen=True, kw_only=True, slots=True)
class NDCGaussians:
    """Gaussians of a predictor, in normalised device coordinates, before the camera is applied.

    A batch of B images has N Gaussians each, in the order layer, row, column.

    Attributes:
        means: (B, N, 3), (z x, z y, z) with x, y in [-1, 1], where the top left is (-1, -1), and z in metres.
        scales: (B, N, 3), standard deviations in the same space, positive.
        quaternions_wxyz: (B, N, 4), real part first, not necessarily unit.
        colors_linear: (B, N, 3), linear RGB in [0, 1].
        opacities: (B, N), in [0, 1].

    Raises:
        ValueError: The shapes do not agree.
    """

    means: torch.Tensor
    scales: torch.Tensor
    quaternions_wxyz: torch.Tensor
    colors_linear: torch.Tensor
    opacities: torch.Tensor

    def __post_init__(self) -> None:
        _check_shapes(self, num_leading=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gaussians:
    """Metric Gaussians of one scene with OpenCV axes (x right, y down, z forward), as writers take them.

    Writers refuse values that are not finite and quaternions that are not unit, and clamp values that are out of range:
    see `sharp_cog.formats.ply.vertex_block`.

    Attributes:
        means: (N, 3), metres; all fields are float32.
        scales: (N, 3), standard deviations along the principal axes, metres, positive.
        quaternions_wxyz: (N, 4), unit, real part first, w >= 0; rotates the principal axes into the scene.
        colors_linear: (N, 3), linear RGB in [0, 1].
        opacities: (N,), in [0, 1].

    Raises:
        ValueError: The shapes do not agree, or a field is not float32.
    """

    means: torch.Tensor
    scales: torch.Tensor
    quaternions_wxyz: torch.Tensor
    colors_linear: torch.Tensor
    opacities: torch.Tensor

    def __post_init__(self) -> None:
        _check_shapes(self, num_leading=1)
        # Half precision cannot hold the logit of an opacity near 1, and float64 would be rounded silently by writers.
        for field in fields(self):
            # By its name, since this module does not import torch.
            dtype = str(getattr(self, field.name).dtype)
            if dtype != "torch.float32":
                raise ValueError(f"{field.name} is {dtype}, Gaussians are torch.float32: convert it with .float()")

    def __len__(self) -> int:
        return int(self.means.shape[0])

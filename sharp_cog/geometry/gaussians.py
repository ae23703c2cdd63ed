"""The two kinds of Gaussians in the pipeline: those of the network, and those of a metric scene.

This module must stay importable without torch, so it only names tensors in annotations and never creates one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Size of the last dimension of each field; None for a field without one.
_CHANNELS = {"means": 3, "scales": 3, "quaternions_wxyz": 4, "colors_linear": 3, "opacities": None}

MAX_DEGREE = 4
"""Highest degree of spherical harmonics."""
NUM_BANDS = tuple((degree + 1) ** 2 - 1 for degree in range(MAX_DEGREE + 1))
"""Number of spherical harmonics above degree 0, by the highest degree: 0, 3, 8, 15, 24."""


def _check_shapes(gaussians: NDCGaussians | Gaussians, num_leading: int) -> None:
    """Check that all fields agree in their leading dimensions and have the right number of channels."""
    leading = tuple(gaussians.means.shape[:-1])
    if len(leading) != num_leading:
        raise ValueError(f"means has shape {tuple(gaussians.means.shape)}, expected {num_leading + 1} dimensions")
    for name, channels in _CHANNELS.items():
        expected = leading if channels is None else (*leading, channels)
        shape = tuple(getattr(gaussians, name).shape)
        if shape != expected:
            raise ValueError(f"{name} has shape {shape}, expected {expected}")


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

    A camera that looks in the direction d from its centre to a mean sees the colour max(0, sRGB(colors_linear) + the
    sum of harmonics[k] Y_k(d)), an sRGB value. sRGB is the curve of IEC 61966-2-1, extended to negative numbers as an
    odd function and beyond 1 by the same power: trained splats have such colours, which their harmonics bring back.
    `sharp_cog.geometry.harmonics` has the functions Y_k.

    Attributes:
        means: (N, 3), metres; all fields are float32.
        scales: (N, 3), standard deviations along the principal axes, metres, positive.
        quaternions_wxyz: (N, 4), unit, real part first, w >= 0; rotates the principal axes into the scene.
        colors_linear: (N, 3), linear RGB; in [0, 1] where sharp_cog has predicted it.
        opacities: (N,), in [0, 1].
        harmonics: (N, K, 3), coefficients of the spherical harmonics above degree 0 for red, green and blue, in the
            axes of the means and in units of sRGB values; K is one of 3, 8, 15 and 24 for the degrees 1 to 4. None if
            colours do not depend on the direction.

    Raises:
        ValueError: The shapes do not agree, or a field is not float32.
    """

    means: torch.Tensor
    scales: torch.Tensor
    quaternions_wxyz: torch.Tensor
    colors_linear: torch.Tensor
    opacities: torch.Tensor
    harmonics: torch.Tensor | None = None

    def __post_init__(self) -> None:
        _check_shapes(self, num_leading=1)
        if self.harmonics is not None:
            shape = tuple(self.harmonics.shape)
            if shape not in [(len(self), num_bands, 3) for num_bands in NUM_BANDS[1:]]:
                raise ValueError(f"harmonics has shape {shape}, expected ({len(self)}, 3, 8, 15 or 24, 3)")
        # Half precision cannot hold the logit of an opacity near 1, and float64 would be rounded silently by writers.
        for name, tensor in self.tensors().items():
            # By its name, since this module does not import torch.
            dtype = str(tensor.dtype)
            if dtype != "torch.float32":
                raise ValueError(f"{name} is {dtype}, Gaussians are torch.float32: convert it with .float()")

    def __len__(self) -> int:
        return int(self.means.shape[0])

    @property
    def degree(self) -> int:
        """Highest degree of the spherical harmonics, 0 without any."""
        return 0 if self.harmonics is None else NUM_BANDS.index(self.harmonics.shape[1])

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the fields by name, without `harmonics` where these Gaussians have none."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Gaussians:
        """Return the Gaussians with a function applied to each of `tensors`, such as an index or a change of device."""
        return replace(self, **{name: function(tensor) for name, tensor in self.tensors().items()})

"""Reads .ply files of 3D Gaussians: ours, Apple's, and those of other tools with the same properties."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from sharp_cog.errors import SplatError
from sharp_cog.formats.ply import PROPERTIES, SH_C0
from sharp_cog.formats.ply_file import camera_of, frame_of, parse_header, read_elements
from sharp_cog.formats.scene import Frame, Splat
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.quaternions import canonicalize
from sharp_cog.imaging.color import srgb_to_linear


def read_ply(content: bytes) -> Splat:
    """Reads a splat; properties that are not needed, such as higher spherical harmonics, are passed over.

    Args:
        content: The whole file: binary of either byte order, or ASCII.

    Raises:
        SplatError: Not a .ply, broken, truncated, or without what a Gaussian needs.
    """
    header = parse_header(content)
    elements = read_elements(content, header)
    if "vertex" not in elements:
        raise SplatError("the .ply has no element 'vertex': it is not a splat")
    gaussians = _gaussians(elements["vertex"], is_linear=_is_linear(elements))
    frame = frame_of(header.comments) or (Frame() if "intrinsic" in elements else None)
    return Splat(gaussians=gaussians, camera=camera_of(header.comments, elements), frame=frame)


def _is_linear(elements: dict[str, NDArray[np.void]]) -> bool:
    """Whether Apple's element says that colours are linear (1); without it they are sRGB, as viewers take them."""
    element = elements.get("color_space")
    if element is None or "color_space" not in (element.dtype.names or ()) or not len(element):
        return False
    return bool(element["color_space"][0] == 1)


def _gaussians(vertices: NDArray[np.void], *, is_linear: bool) -> Gaussians:
    missing = [name for name in PROPERTIES if name not in (vertices.dtype.names or ())]
    if missing:
        raise SplatError(f"the .ply has no {', '.join(missing)}: it holds points or a mesh, not Gaussians")

    def columns(*names: str) -> torch.Tensor:
        with np.errstate(over="ignore"):  # A double beyond float32 becomes infinite, which is refused below.
            return torch.from_numpy(np.stack([vertices[name].astype(np.float32) for name in names], axis=-1))

    quaternions = columns("rot_0", "rot_1", "rot_2", "rot_3")
    # A quaternion of length zero stands for no rotation; q and -q are the same one. Relative to the largest component,
    # so that no square over- or underflows.
    quaternions[(quaternions == 0).all(dim=-1)] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    quaternions = quaternions / quaternions.abs().amax(dim=-1, keepdim=True)
    quaternions = torch.nn.functional.normalize(quaternions, dim=-1)
    colors = (columns("f_dc_0", "f_dc_1", "f_dc_2") * SH_C0 + 0.5).clamp_(0.0, 1.0)
    gaussians = Gaussians(
        means=columns("x", "y", "z"),
        scales=columns("scale_0", "scale_1", "scale_2").exp_(),
        quaternions_wxyz=canonicalize(quaternions),
        colors_linear=colors if is_linear else srgb_to_linear(colors),
        opacities=columns("opacity")[:, 0].sigmoid(),
    )
    for name in ("means", "scales", "quaternions_wxyz", "colors_linear", "opacities"):
        num_bad = int((~getattr(gaussians, name).isfinite()).sum())
        if num_bad:
            raise SplatError(f"the .ply has {num_bad} values of {name} that are not finite: it is broken")
    return gaussians

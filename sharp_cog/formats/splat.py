"""antimatter15's .splat: 32 bytes a Gaussian and nothing else, most important first.

A record (https://github.com/antimatter15/splat) holds the position and the standard deviations as floats, sRGB and
opacity in 8 bits each, and the quaternion w x y z in 8 bits each, 128 for zero and 128 to one. A page shows them
as they come, so the most important come first: by volume times opacity, the order of antimatter15's own converter.
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
import torch

from sharp_cog.errors import SplatError
from sharp_cog.formats.limits import MAX_LENGTH_M, MIN_SCALE_M
from sharp_cog.formats.ply import SH_C0, vertex_block
from sharp_cog.formats.scene import PHOTOGRAPH_FRAME, Frame, Splat
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.quaternions import canonicalize
from sharp_cog.imaging.color import srgb_to_linear

RECORD = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("quaternion_wxyz", "u1", 4)])
"""A Gaussian, 32 bytes."""


def write_splat(file: BinaryIO, gaussians: Gaussians, camera: Camera | None, frame: Frame = PHOTOGRAPH_FRAME) -> None:
    """Writes a .splat; it has no place for the camera and the frame.

    Positions and scales are exact, colours to 8 bits of sRGB, opacities to 8 bits, components of quaternions to 0.004
    (0.008 where one is 1).

    Args:
        file: Where to.
        gaussians: N Gaussians on any device.
        camera: The photograph's camera; not written.
        frame: Not written.

    Raises:
        PredictionError: A value is not finite.
    """
    del camera, frame
    block = torch.from_numpy(vertex_block(gaussians))
    scales = gaussians.scales.cpu().clamp(MIN_SCALE_M, MAX_LENGTH_M)
    opacities = gaussians.opacities.cpu()
    # By the logarithm: the product of three small scales would underflow.
    importance = block[:, 7:10].sum(dim=1).add_(opacities.clamp(min=MIN_SCALE_M).log())
    order = importance.argsort(descending=True, stable=True)
    rgba = torch.cat([block[:, 3:6] * SH_C0 + 0.5, opacities.unsqueeze(1)], dim=1).mul_(255.0)
    quaternions = block[:, 10:14].mul(128.0).add_(128.0)
    records = np.empty(len(block), dtype=RECORD)
    records["means"] = block[:, 0:3][order].numpy()
    records["scales"] = scales[order].numpy()
    records["rgba"] = rgba.round_().clamp_(0.0, 255.0).to(torch.uint8)[order].numpy()
    records["quaternion_wxyz"] = quaternions.round_().clamp_(0.0, 255.0).to(torch.uint8)[order].numpy()
    file.write(records.data)


def read_splat(content: bytes) -> Splat:
    """Reads a .splat.

    Args:
        content: The whole file.

    Returns:
        The Gaussians in the file's order; the camera is not known.

    Raises:
        SplatError: Not whole records, or a value that no Gaussian has.
    """
    if len(content) % RECORD.itemsize:
        raise SplatError(
            f"the .splat has {len(content)} bytes, not a multiple of {RECORD.itemsize}: it is truncated or not a .splat"
        )
    records = np.frombuffer(content, dtype=RECORD)
    means = torch.from_numpy(records["means"].astype(np.float32))
    scales = torch.from_numpy(records["scales"].astype(np.float32))
    num_bad = int((~(means.isfinite() & scales.isfinite() & (scales >= 0))).any(dim=1).sum())
    if num_bad:
        raise SplatError(
            f"{num_bad} of {len(records)} Gaussians of the .splat have positions or scales that are not finite, or "
            "negative scales: it is broken or not a .splat"
        )
    rgba = torch.from_numpy(records["rgba"].astype(np.float32)).div_(255.0)
    quaternions = torch.from_numpy(records["quaternion_wxyz"].astype(np.float32)).sub_(128.0)
    # Four times 128 stands for no rotation; q and -q are the same one.
    quaternions[(quaternions == 0).all(dim=1), 0] = 1.0
    quaternions = torch.nn.functional.normalize(quaternions, dim=1)
    gaussians = Gaussians(
        means=means,
        scales=scales,
        quaternions_wxyz=canonicalize(quaternions),
        colors_linear=srgb_to_linear(rgba[:, :3]),
        opacities=rgba[:, 3].contiguous(),
    )
    return Splat(gaussians=gaussians, camera=None)

"""antimatter15's .splat: 32 bytes for each Gaussian and nothing else, the most important ones first.

A record (https://github.com/antimatter15/splat) holds the position and the standard deviations as floats, sRGB and
opacity in 8 bits each, and the quaternion w x y z in 8 bits each, with an offset and a factor of 128. Web viewers show
Gaussians while they download, so they are sorted by volume times opacity, as antimatter15's own converter does.
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
import torch

from sharp_cog.errors import SplatError
from sharp_cog.formats.limits import MAX_LENGTH_M, MIN_OPACITY, MIN_SCALE_M
from sharp_cog.formats.ply import SH_C0, vertex_block
from sharp_cog.formats.quaternions import to_unit
from sharp_cog.formats.scene import PHOTOGRAPH_FRAME, Frame, Splat
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.imaging.color import srgb_to_linear

RECORD = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("quaternion_wxyz", "u1", 4)])
"""Record of a Gaussian, 32 bytes."""


def write_splat(file: BinaryIO, gaussians: Gaussians, camera: Camera | None, frame: Frame = PHOTOGRAPH_FRAME) -> None:
    """Write a .splat, which cannot store the camera and the frame.

    Positions and scales are exact, colours to 8 bits of sRGB, opacities to 8 bits, components of quaternions to 0.004
    (0.008 where one is 1).

    Args:
        file: Binary file to write to.
        gaussians: N Gaussians on any device.
        camera: Ignored.
        frame: Ignored.

    Raises:
        PredictionError: A value is not finite.
    """
    del camera, frame
    block = torch.from_numpy(vertex_block(gaussians))
    # The exponentials of the block's logarithms would have lost digits.
    scales = gaussians.scales.cpu().clamp(MIN_SCALE_M, MAX_LENGTH_M)
    opacities = gaussians.opacities.cpu()
    # The product of three small scales would underflow, so logarithms are added.
    importance = block[:, 7:10].sum(dim=1).add_(opacities.clamp(min=MIN_OPACITY).log())
    order = importance.argsort(descending=True, stable=True)
    rgba = torch.cat([block[:, 3:6] * SH_C0 + 0.5, opacities.unsqueeze(1)], dim=1).mul_(255.0)
    # A component of 1 would become 256: the clamp below makes it 255, as antimatter15's converter does.
    quaternions = block[:, 10:14].mul(128.0).add_(128.0)
    records = np.empty(len(block), dtype=RECORD)
    records["means"] = block[:, 0:3][order].numpy()
    records["scales"] = scales[order].numpy()
    records["rgba"] = rgba.round_().clamp_(0.0, 255.0).to(torch.uint8)[order].numpy()
    records["quaternion_wxyz"] = quaternions.round_().clamp_(0.0, 255.0).to(torch.uint8)[order].numpy()
    file.write(records.data)


def read_splat(content: bytes) -> Splat:
    """Read a .splat.

    Args:
        content: The whole file.

    Returns:
        The Gaussians in the file's order, without camera and frame.

    Raises:
        SplatError: The last record is incomplete, a value is not finite, or a scale is negative.
    """
    if len(content) % RECORD.itemsize:
        raise SplatError(
            f"the .splat has {len(content)} bytes, not a multiple of {RECORD.itemsize}: it is truncated or not a .splat"
        )
    records = np.frombuffer(content, dtype=RECORD)
    # `astype` copies into memory that torch may write, in this machine's byte order.
    means = torch.from_numpy(records["means"].astype(np.float32))
    scales = torch.from_numpy(records["scales"].astype(np.float32))
    # The format has no magic bytes: a negative scale is the best sign that the content is something else.
    num_bad = int((scales < 0).any(dim=1).sum())
    if num_bad:
        raise SplatError(
            f"{num_bad} of {len(records)} Gaussians of the .splat have negative scales: it is broken or not a .splat"
        )
    rgba = torch.from_numpy(records["rgba"].astype(np.float32)).div_(255.0)
    quaternions = torch.from_numpy(records["quaternion_wxyz"].astype(np.float32)).sub_(128.0)
    gaussians = Gaussians(
        means=means,
        scales=scales,
        quaternions_wxyz=to_unit(quaternions),
        colors_linear=srgb_to_linear(rgba[:, :3]),
        opacities=rgba[:, 3].contiguous(),
    )
    return Splat(gaussians=gaussians, camera=None)

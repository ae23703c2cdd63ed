"""PlayCanvas' SOG, version 2: a zip of lossless WebP images with one Gaussian per pixel.

The layout is specified at https://developer.playcanvas.com/user-manual/gaussian-splatting/formats/sog/. The page leaves
some details open; there, this module follows PlayCanvas' readers: scales are natural logarithms, quaternions are stored
in the order w x y z, and coordinates are those of a .ply, unchanged.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import sharp_cog
from sharp_cog.errors import OutputError
from sharp_cog.formats.ply import SH_C0, vertex_block
from sharp_cog.formats.quaternions import drop_largest
from sharp_cog.formats.scene import PHOTOGRAPH_FRAME, Frame, camera_fields
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians

CODEBOOK_SIZE = 256
"""Number of levels of a codebook."""
QUATERNION_MODE = 252
"""Alpha of a quaternion whose largest component is w; 253 to 255 stand for x, y, z."""
MAX_SIDE = 16383
"""Maximum width and height of a WebP image in pixels."""

_GRID_WIDTH = 768
"""Width of the images in pixels. SHARP's Gaussians come in layers of 768 x 768 in raster order, so that neighbours in
space are neighbours in the image, which compresses best."""
_MAX_GRID_HEIGHT = 4096
"""Maximum height of images of that width: some phones have no taller textures. Larger splats get square images."""

_NUM_BINS = 4096
"""Number of histogram bins to which a codebook is fitted."""
_EVEN_SHARE = 0.25
"""Share of a codebook's levels that lie evenly over the whole range."""
_WEBP: dict[str, Any] = {"format": "WEBP", "lossless": True, "exact": True, "method": 4, "quality": 50}
"""Pillow's arguments: method 6 takes thirteen times as long for 0.6 %; `exact` keeps colours where the alpha is 0."""


def write_sog(file: BinaryIO, gaussians: Gaussians, camera: Camera | None, frame: Frame = PHOTOGRAPH_FRAME) -> None:
    """Write a bundled SOG; the camera and the frame go into `meta.json`, where readers ignore them.

    Colours are exact to 8 bits of sRGB, opacities to 8 bits, positions to 16 bits of their symmetric logarithm over
    the scene's extent, rotations to 1.1 degrees. Scales have a codebook of 256 logarithms fitted to them: they are
    exact to 1 / 62 of the range of the logarithms, and most of them are much closer.

    Raises:
        PredictionError: A value is not finite.
        OutputError: The number of Gaussians exceeds the number of pixels of an image.
    """
    block = vertex_block(gaussians)
    width, height = _image_size(len(block))
    meta: dict[str, Any] = {
        "version": 2,
        "asset": {"generator": f"sharp_cog {sharp_cog.__version__}"},
        "count": len(block),
        "antialias": False,
        "frame": {"axes": frame.axes, "camera_position": frame.camera_position},
    }
    if camera is not None:
        meta["camera"] = camera_fields(camera)
    low, high, meta["means"] = _pack_means(torch.from_numpy(block[:, 0:3]))
    scales, meta["scales"] = _pack_scales(block[:, 7:10])
    colors, meta["sh0"] = _pack_colors(torch.from_numpy(block[:, 3:7]))
    quaternions, meta["quats"] = _pack_quaternions(torch.from_numpy(block[:, 10:14]))
    # The slowest images come first, so that no thread starts late on a long job.
    images = {
        "means_l.webp": low,
        "quats.webp": quaternions,
        "sh0.webp": colors,
        "scales.webp": scales,
        "means_u.webp": high,
    }
    with ThreadPoolExecutor(len(images)) as executor:  # Pillow releases the GIL while it encodes.
        encoded = executor.map(lambda pixels: _encode(pixels, width, height), images.values())
        # WebP leaves nothing to compress. `map` yields in the order of `images`, whichever thread ends first.
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            _add(archive, "meta.json", json.dumps(meta, separators=(",", ":")).encode("ascii"))
            for name, content in zip(images, encoded, strict=True):
                _add(archive, name, content)


def _image_size(count: int) -> tuple[int, int]:
    """Return width and height in pixels of the images for `count` Gaussians; 1 x 1 for none."""
    width = _GRID_WIDTH if count <= _GRID_WIDTH * _MAX_GRID_HEIGHT else math.isqrt(count - 1) + 1
    width = max(1, min(width, count))
    height = max(1, -(-count // width))
    if max(width, height) > MAX_SIDE:
        raise OutputError(f"the splat has {count} Gaussians, a .sog holds {MAX_SIDE**2}: lower max_gaussians")
    return width, height


def _pack_means(means: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.uint8], dict[str, Any]]:
    """Return the low and the high bytes of 16-bit positions on a symmetric logarithmic scale, and their metadata."""
    # sign(x) * ln(1 + |x|): steps grow with the distance from the origin.
    logs = means.abs().log1p_().copysign_(means)
    mins = (logs.amin(dim=0) if len(logs) else torch.zeros(3)).double()
    maxs = (logs.amax(dim=0) if len(logs) else torch.zeros(3)).double()
    steps = (maxs - mins) / 65535.0
    # If all positions are equal, any step is right: they all get the code 0.
    steps = torch.where(steps > 0, steps, 1.0)
    # float64, because float32 would add some hundredths of a code of rounding error.
    codes = logs.sub(mins).div_(steps).round_().clamp_(0.0, 65535.0).to(torch.int32).numpy()
    # (N, 3, 2), the low byte first.
    pairs = codes.astype("<u2").view(np.uint8).reshape(-1, 3, 2)
    meta = {"mins": mins.tolist(), "maxs": maxs.tolist(), "files": ["means_l.webp", "means_u.webp"]}
    return pairs[..., 0], pairs[..., 1], meta


def _pack_scales(log_scales: NDArray[np.float32]) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    codes, codebook = _fit_codebook(log_scales)
    return codes, {"codebook": codebook, "files": ["scales.webp"]}


def _fit_codebook(values: NDArray[np.float32]) -> tuple[NDArray[np.uint8], list[float]]:
    """Quantise values to 256 levels, whose density follows the cube root of the density of the values.

    That has the least mean squared error of all densities for fine quantisation (Panter and Dite, 1951), but one level
    may cover a few values that lie far apart. `_EVEN_SHARE` of the levels are therefore spread evenly: no level covers
    more than 1 / 62 of the range. Each level is the mean of the values that it covers.

    Returns:
        Indices of the levels, in the shape of the values; and the levels.
    """
    if not values.size:
        return values.astype(np.uint8), [0.0] * CODEBOOK_SIZE
    # A histogram, and the sum of the values in each bin. The largest value falls into the last bin.
    low, high = float(values.min()), float(values.max())
    bins_per_unit = (_NUM_BINS - 1) / (high - low) if high > low else 0.0
    bins = ((values - np.float32(low)) * np.float32(bins_per_unit)).astype(np.intp).clip(0, _NUM_BINS - 1)
    counts = np.bincount(bins.ravel(), minlength=_NUM_BINS)
    sums = np.bincount(bins.ravel(), weights=values.ravel(), minlength=_NUM_BINS)
    # The share of the levels that each bin gets.
    density = np.cbrt(counts)
    density = density / density.sum() * (1.0 - _EVEN_SHARE) + _EVEN_SHARE / _NUM_BINS
    # Each bin takes the level at the middle of its part of the cumulative density.
    level_of_bin = ((np.cumsum(density) - density / 2) * CODEBOOK_SIZE).clip(0, CODEBOOK_SIZE - 1).astype(np.uint8)
    level_counts = np.bincount(level_of_bin, weights=counts, minlength=CODEBOOK_SIZE)
    level_sums = np.bincount(level_of_bin, weights=sums, minlength=CODEBOOK_SIZE)
    # Levels without values lie between their neighbours, so that the codebook ascends.
    used = np.flatnonzero(level_counts)
    levels = np.interp(np.arange(CODEBOOK_SIZE), used, level_sums[used] / level_counts[used])
    return level_of_bin[bins], levels.tolist()


def _pack_colors(harmonics_and_logits: Tensor) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Return RGBA pixels and their metadata: the 256 levels of a colour are those of 8-bit sRGB."""
    colors = harmonics_and_logits[:, :3].mul(SH_C0).add_(0.5)
    values = torch.cat([colors, harmonics_and_logits[:, 3:].sigmoid()], dim=-1)
    codes = values.mul_(255.0).round_().clamp_(0.0, 255.0).to(torch.uint8).numpy()
    codebook = (np.arange(CODEBOOK_SIZE) / 255.0 - 0.5) / SH_C0
    return codes, {"codebook": codebook.tolist(), "files": ["sh0.webp"]}


def _pack_quaternions(quaternions_wxyz: Tensor) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Return RGBA pixels and their metadata: the three smallest components, and the index of the largest one."""
    largest, others = drop_largest(quaternions_wxyz.t())
    codes = others.mul_(math.sqrt(0.5)).add_(0.5).mul_(255.0).round_().clamp_(0.0, 255.0)
    packed = torch.cat([codes, largest.unsqueeze(0) + QUATERNION_MODE]).t().to(torch.uint8).numpy()
    return packed, {"files": ["quats.webp"]}


def _encode(pixels: NDArray[np.uint8], width: int, height: int) -> bytes:
    """Return a WebP image of (N, 3) or (N, 4) pixels in raster order; the last pixel is repeated to fill the image."""
    num_channels = pixels.shape[1]
    padding = width * height - len(pixels)
    last = pixels[-1:] if len(pixels) else np.zeros((1, num_channels), dtype=np.uint8)
    whole = np.concatenate([pixels, last.repeat(padding, axis=0)]).reshape(height, width, num_channels)
    file = io.BytesIO()
    Image.fromarray(whole).save(file, **_WEBP)
    return file.getvalue()


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file with a fixed date, so that the same splat always has the same bytes."""
    archive.writestr(zipfile.ZipInfo(name), content)

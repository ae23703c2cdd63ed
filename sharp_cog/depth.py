"""Bytes of a depth map in, metres out: positive and finite everywhere."""

from __future__ import annotations

import io
import logging
import struct
import tokenize
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import PngImagePlugin

from sharp_cog.camera import Camera
from sharp_cog.errors import DepthError

_LOG = logging.getLogger(__name__)

Depth = NDArray[np.float32]

MAX_PIXELS = 100_000_000
MAX_ASPECT_DIFFERENCE = 0.02
MIN_DEPTH_M = 0.001
_FLOOR_QUANTILE, _FLOOR_SHARE = 0.001, 0.5
_FORMATS = "give a 16-bit grey PNG in millimetres, or a .npy array in metres"
_NPY_MAGIC, _PNG_MAGIC = b"\x93NUMPY", b"\x89PNG\r\n\x1a\n"
# What numpy's header parser raises on broken text: it documents the first, fuzzing found the others.
_NPY_ERRORS = (
    ValueError,
    TypeError,
    LookupError,
    SyntaxError,
    EOFError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    tokenize.TokenError,
    UserWarning,  # That an array was saved by Python 2, where warnings are made errors.
)
_PNG_ERRORS = (OSError, SyntaxError, ValueError, LookupError, EOFError, MemoryError, struct.error, zlib.error)
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthMap:
    """Depth along the optical axis of a photograph's camera.

    Attributes:
        depth_m: (height, width) float32, metres, positive and finite; the photograph's aspect, not its size.
    """

    depth_m: Depth

    def __post_init__(self) -> None:
        if self.depth_m.ndim != 2 or self.depth_m.dtype != np.float32:
            raise ValueError(f"depth_m is {self.depth_m.dtype} of shape {self.depth_m.shape}, expected 2-D float32")


def decode(depth_bytes: bytes, camera: Camera) -> DepthMap:
    """Decodes a depth map, told by its content.

    Unknown pixels (NaN, infinite, zero or negative) are filled from the nearest known ones. A near-zero outlier would
    flatten the scene, since the network works in units of the nearest depth: what lies under half of the 0.1 % quantile
    is raised to that quantile. Both are logged with their counts.

    Args:
        depth_bytes: A 16-bit grey PNG in millimetres, or a .npy array of numbers in metres.
        camera: The photograph's camera, whose aspect the map must have within 2 %.

    Raises:
        DepthError: Not a depth map, broken, without a known pixel, or of another aspect.
    """
    depth_m = _read(depth_bytes)
    height, width = depth_m.shape
    if width * height > MAX_PIXELS:
        raise DepthError(f"the depth map is {width}x{height}, the limit is {MAX_PIXELS // 10**6} MP: downscale it")
    difference = abs(width * camera.height / (height * camera.width) - 1)
    if difference > MAX_ASPECT_DIFFERENCE:
        raise DepthError(
            f"the depth map is {width}x{height}, the picture {camera.width}x{camera.height}: "
            f"their aspects differ by {difference:.0%}, more than {MAX_ASPECT_DIFFERENCE:.0%}: crop one of them"
        )
    return DepthMap(depth_m=_known_everywhere(depth_m))


def _read(depth_bytes: bytes) -> Depth:
    if not depth_bytes:
        raise DepthError(f"the depth map has zero bytes: {_FORMATS}")
    if depth_bytes.startswith(_NPY_MAGIC):
        return _read_npy(depth_bytes)
    if depth_bytes.startswith(_PNG_MAGIC):
        return _read_png(depth_bytes)
    raise DepthError(f"the bytes are not a depth map: {_FORMATS}")


def _read_npy(depth_bytes: bytes) -> Depth:
    """Metres from a .npy array; its header is checked against the bytes before anything is allocated."""
    file = io.BytesIO(depth_bytes)
    try:
        version = np.lib.format.read_magic(file)
        shape, is_fortran, dtype = _NPY_HEADERS[version](file)
    except _NPY_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise DepthError(f"the .npy header is broken ({reason}): save it with numpy.save") from error
    if dtype.kind not in "fiu":
        raise DepthError(f"the .npy array holds {dtype}, not numbers: save floats or integers, in metres")
    sides = [side for side in shape if side != 1]
    if len(sides) != 2 or min(sides) < 1:
        raise DepthError(f"the .npy array has shape {shape}: give one map of height x width")
    offset, num_values = file.tell(), sides[0] * sides[1]
    if len(depth_bytes) - offset != num_values * dtype.itemsize:
        raise DepthError(
            f"the .npy header promises {num_values * dtype.itemsize} bytes for shape {shape}, "
            f"and {len(depth_bytes) - offset} follow: the file is truncated or broken"
        )
    values = np.frombuffer(depth_bytes, dtype=dtype, offset=offset)
    with np.errstate(over="ignore"):  # A float64 beyond float32 becomes infinite, which is unknown.
        return values.reshape(sides, order="F" if is_fortran else "C").astype(np.float32)


def _read_png(depth_bytes: bytes) -> Depth:
    """Metres from a 16-bit grey PNG in millimetres."""
    # The plugin is called directly: `Image.open` would warn about large ones by a global limit that is not ours.
    try:
        image = PngImagePlugin.PngImageFile(io.BytesIO(depth_bytes))
        is_16_bit_grey = image.mode.startswith("I;16")
        if is_16_bit_grey and image.width * image.height <= MAX_PIXELS:
            image.load()
    except _PNG_ERRORS as error:
        raise DepthError(f"the depth map is broken or truncated ({error}): export it again") from error
    if not is_16_bit_grey:
        raise DepthError(f"the depth map is a PNG of mode {image.mode}, not of 16-bit grey: {_FORMATS}")
    if image.width * image.height > MAX_PIXELS:
        raise DepthError(
            f"the depth map is {image.width}x{image.height}, the limit is {MAX_PIXELS // 10**6} MP: downscale it"
        )
    return np.asarray(image).astype(np.float32) / np.float32(1000)


def _known_everywhere(depth_m: Depth) -> Depth:
    """Raises near-zero outliers and fills what is unknown, in this order, lest an outlier spreads over a hole."""
    known = np.isfinite(depth_m) & (depth_m > 0)
    num_unknown = depth_m.size - int(np.count_nonzero(known))
    if num_unknown == depth_m.size:
        raise DepthError("the depth map has no known pixel: every value is zero, negative, NaN or infinite")
    floor_m = np.float32(np.quantile(depth_m[known], _FLOOR_QUANTILE))
    outliers = known & (depth_m < _FLOOR_SHARE * floor_m)
    if outliers.any():
        _LOG.warning(
            "%d pixels of the depth map are nearer than half of %.3g m, far before the rest, and were raised to it",
            np.count_nonzero(outliers),
            floor_m,
        )
        depth_m = np.where(outliers, floor_m, depth_m)
    if num_unknown:
        _LOG.warning(
            "%d of %d pixels of the depth map are unknown and were filled from known ones", num_unknown, depth_m.size
        )
        depth_m = _filled(depth_m, known)
    return np.maximum(depth_m, np.float32(MIN_DEPTH_M))


def _filled(depth_m: Depth, known: NDArray[np.bool_]) -> Depth:
    """Fills unknown pixels from a pyramid of means of the known ones: each takes the finest level that knows."""
    height, width = depth_m.shape
    if height == 1 and width == 1:
        return depth_m
    # Halve, an odd side padded with unknown pixels, fill the half, and take from it what is unknown here.
    padding = ((0, height % 2), (0, width % 2))
    blocks = (-(-height // 2), 2, -(-width // 2), 2)
    # In quarters, so that the sum of four stays in float32's range.
    sums = np.pad(np.where(known, depth_m, 0) * np.float32(0.25), padding).reshape(blocks).sum(axis=(1, 3))
    counts = np.pad(known, padding).reshape(blocks).sum(axis=(1, 3), dtype=np.float32)
    means = sums / np.maximum(counts * np.float32(0.25), np.float32(0.25))
    coarse = means if counts.all() else _filled(means, counts > 0)
    enlarged = _doubled(_doubled(coarse).T).T[:height, :width]
    return np.where(known, depth_m, enlarged)


def _doubled(rows: Depth) -> Depth:
    """Twice as many rows, linearly interpolated between the centres of the given ones."""
    above, below = np.vstack([rows[:1], rows[:-1]]), np.vstack([rows[1:], rows[-1:]])
    doubled = np.empty((2 * len(rows), rows.shape[1]), dtype=np.float32)
    doubled[0::2] = 0.75 * rows + 0.25 * above
    doubled[1::2] = 0.75 * rows + 0.25 * below
    return doubled

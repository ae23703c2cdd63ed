"""Mark Kellogg's .ksplat, the format of GaussianSplats3D, in all three levels of compression; it is only read.

The layout is that of version 0.1 (https://github.com/mkkellogg/GaussianSplats3D, `SplatBuffer`): a header of 4096
bytes, a header of 1024 bytes for each section, then the sections. A section has the lengths of its buckets that are not
full, the centres of its buckets, and a record for each Gaussian. From level 1 on, positions are 16-bit offsets from the
centre of their bucket, and scales and quaternions are half floats; level 2 stores spherical harmonics in 8 bits. The
harmonics of a record are grouped by degree, then by channel. Coordinates are those of a .ply.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sharp_cog.errors import SplatError
from sharp_cog.formats.quaternions import to_unit
from sharp_cog.formats.scene import Splat
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.transform import concatenate
from sharp_cog.imaging.color import srgb_to_linear

MAGIC = b"\x00\x01\x00\x00"
"""Version 0.1 and two unused bytes, with which every file begins."""
HEADER_BYTES = 4096
"""Length of the header."""
SECTION_BYTES = 1024
"""Length of the header of a section."""

_HEADER = struct.Struct("<4xIIIIH2x3fff")
"""Sections that there is room for, sections, Gaussians that there is room for, Gaussians, level, centre of the scene,
and the range of 8-bit harmonics."""
_SECTION = struct.Struct("<IIIIfH2xI4xIIH")
"""Gaussians, Gaussians that there is room for, size of a bucket, buckets, their width, bytes of a centre, codes from a
centre to the edge, full buckets, other buckets, and degree of the harmonics."""
_NUM_BANDS = (0, 3, 8, 15)
"""Number of spherical harmonics above degree 0, by the degree."""
_DEFAULT_HARMONICS_LIMIT = 1.5
"""Limit of 8-bit harmonics if the header has a zero in its place."""
_CENTER_BYTES = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """Types of a record's values at a level of compression."""

    position: str
    scale_and_rotation: str
    harmonics: str
    default_range: int

    def record(self, degree: int) -> np.dtype[np.void]:
        fields = [
            ("position", self.position, 3),
            ("scale", self.scale_and_rotation, 3),
            ("wxyz", self.scale_and_rotation, 4),
            ("rgba", "u1", 4),
            ("harmonics", self.harmonics, 3 * _NUM_BANDS[degree]),
        ]
        return np.dtype(fields)


_LAYOUTS = (
    _Layout(position="<f4", scale_and_rotation="<f4", harmonics="<f4", default_range=1),
    _Layout(position="<u2", scale_and_rotation="<f2", harmonics="<f2", default_range=32767),
    _Layout(position="<u2", scale_and_rotation="<f2", harmonics="u1", default_range=32767),
)
"""Layouts by the level of compression."""


def is_ksplat(content: bytes) -> bool:
    """Return whether a content has a header of a .ksplat: its first bytes, and a level that exists."""
    return (
        len(content) >= HEADER_BYTES and content.startswith(MAGIC) and _HEADER.unpack_from(content)[4] < len(_LAYOUTS)
    )


def read_ksplat(content: bytes) -> Splat:
    """Read a .ksplat.

    Args:
        content: The whole file.

    Returns:
        The Gaussians in the file's order, without camera.

    Raises:
        SplatError: The content is not a .ksplat, is broken or truncated, or has another version.
    """
    if len(content) < HEADER_BYTES or not content.startswith(MAGIC):
        raise SplatError("the file has no header of a .ksplat of version 0.1: it is truncated or not a .ksplat")
    num_sections, _, _, _, level, _, _, _, low, high = _HEADER.unpack_from(content)
    if level >= len(_LAYOUTS):
        raise SplatError(f"the .ksplat has compression level {level}: 0 to {len(_LAYOUTS) - 1} can be read")
    start = HEADER_BYTES + num_sections * SECTION_BYTES
    if start > len(content):
        raise SplatError(f"the .ksplat promises {num_sections} sections in {len(content)} bytes: it is truncated")
    limits = (low or -_DEFAULT_HARMONICS_LIMIT, high or _DEFAULT_HARMONICS_LIMIT)
    parts = []
    for index in range(num_sections):
        section = _Section(content, index, start, level)
        parts.append(section.gaussians(limits))
        start = section.end
    return Splat(gaussians=concatenate(parts), camera=None)


class _Section:
    """A section of a file.

    Args:
        content: The whole file.
        index: Index of the section.
        start: Position of the section's first byte.
        level: Level of compression.

    Raises:
        SplatError: The section is longer than the file, or impossible.
    """

    def __init__(self, content: bytes, index: int, start: int, level: int) -> None:
        header = _SECTION.unpack_from(content, HEADER_BYTES + index * SECTION_BYTES)
        (
            self._count,
            room,
            self._bucket_size,
            num_buckets,
            self._width,
            center_bytes,
            steps,
            num_full,
            num_other,
            degree,
        ) = header
        self._name = f"section {index} of the .ksplat"
        self._level = level
        self._layout = _LAYOUTS[level]
        self._range = steps or self._layout.default_range
        self._num_full = num_full
        if degree >= len(_NUM_BANDS):
            raise SplatError(f"{self._name} has spherical harmonics of degree {degree}: 0 to 3 can be read")
        record = self._layout.record(degree)
        lengths_end = start + 4 * num_other
        centers_end = lengths_end + center_bytes * num_buckets
        # `room` counts all records that are stored, of which the first ones are used.
        self.end = centers_end + record.itemsize * room
        # A header can promise any count, so it is compared with the bytes of the file before anything is allocated.
        if self._count > room or self.end > len(content):
            raise SplatError(
                f"{self._name} promises {self._count} of {room} Gaussians up to byte {self.end}, and the file has "
                f"{len(content)}: it is truncated"
            )
        self._lengths = np.frombuffer(content, "<u4", num_other, start)
        self._records = np.frombuffer(content, record, self._count, centers_end) if self._count else np.empty(0, record)
        self._centers = np.empty((0, 3), dtype=np.float32)
        if level and self._count:
            if center_bytes != _CENTER_BYTES:
                raise SplatError(
                    f"{self._name} has {center_bytes} bytes for the centre of a bucket, not 12: it is broken"
                )
            self._centers = np.frombuffer(content, "<f4", 3 * num_buckets, lengths_end).reshape(-1, 3)

    def gaussians(self, harmonics_limits: tuple[float, float]) -> Gaussians:
        """Return the section's Gaussians."""
        records = self._records
        rgba = torch.from_numpy(records["rgba"].astype(np.float32)).div_(255.0)
        return Gaussians(
            means=torch.from_numpy(self._means()),
            # Half floats of broken files may be negative.
            scales=torch.from_numpy(records["scale"].astype(np.float32)).clamp_(min=0.0),
            quaternions_wxyz=to_unit(torch.from_numpy(records["wxyz"].astype(np.float32))),
            colors_linear=srgb_to_linear(rgba[:, :3]),
            opacities=rgba[:, 3].contiguous(),
            harmonics=self._harmonics(harmonics_limits),
        )

    def _means(self) -> NDArray[np.float32]:
        if not self._level:
            return self._records["position"].astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # `formats.read` refuses values that are not finite.
            offsets = (self._records["position"].astype(np.float32) - np.float32(self._range)) * np.float32(
                self._width / 2 / self._range
            )
            means: NDArray[np.float32] = offsets + self._centers[self._buckets()]
        return means

    def _buckets(self) -> NDArray[np.int64]:
        """Return the index of each Gaussian's bucket: first come the full ones, then the others by their lengths."""
        indices = np.arange(self._count)
        # Ends of the buckets that are not full, counted from the first of their Gaussians.
        ends = np.cumsum(self._lengths, dtype=np.int64)
        num_in_full = self._num_full * self._bucket_size
        buckets: NDArray[np.int64] = np.where(
            indices < num_in_full,
            indices // max(self._bucket_size, 1),
            self._num_full + np.searchsorted(ends, indices - num_in_full, side="right"),
        )
        if len(buckets) and buckets.max() >= len(self._centers):
            raise SplatError(f"{self._name} has {len(self._centers)} buckets, too few for its Gaussians: it is broken")
        return buckets

    def _harmonics(self, limits: tuple[float, float]) -> Tensor | None:
        """Return the spherical harmonics, (N, K, 3); None without any."""
        values = torch.from_numpy(self._records["harmonics"].astype(np.float32))
        if self._layout.harmonics == "u1":
            low, high = limits
            values = values.div_(255.0).mul_(high - low).add_(low)
        # A degree l has 2 l + 1 values for red, then as many for green and for blue.
        degrees, start = [], 0
        for width in (3, 5, 7):
            if start < values.shape[1]:
                degrees.append(values[:, start : start + 3 * width].reshape(-1, 3, width).transpose(1, 2))
                start += 3 * width
        return torch.cat(degrees, dim=1) if degrees else None

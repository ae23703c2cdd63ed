"""Fuzzing targets: splats of users, in every format that is read."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable

import numpy as np
import torch
from plyfile import PlyData

from sharp_cog import formats
from sharp_cog.errors import SplatError
from sharp_cog.formats.splat import read_splat
from tests.formats import cases
from tests.fuzz.harness import Target
from tests.splats import extreme_gaussians, random_gaussians

NUM = 20


def read(content: bytes) -> formats.Splat:
    return sane(formats.read(content))


def sane(splat: formats.Splat) -> formats.Splat:
    """Check the invariants of every splat."""
    gaussians = splat.gaussians
    for values in (gaussians.means, gaussians.scales, gaussians.colors_linear, gaussians.opacities):
        assert values.dtype == torch.float32
        assert bool(values.isfinite().all())
    assert bool((gaussians.scales >= 0).all())
    for values in (gaussians.colors_linear, gaussians.opacities):
        assert bool(((values >= 0) & (values <= 1)).all())
    assert bool(((gaussians.quaternions_wxyz.norm(dim=1) - 1).abs() < 1e-5).all())
    assert bool((gaussians.quaternions_wxyz[:, 0] >= 0).all())
    return splat


def written(case: str, num: int = NUM) -> bytes:
    return cases.written(case, random_gaussians(num))


def by_plyfile(*, text: bool, byte_order: str) -> bytes:
    """Return our .ply as plyfile writes it."""
    data, file = PlyData.read(io.BytesIO(written("ply", 5))), io.BytesIO()
    data.text, data.byte_order = text, "=" if text else byte_order
    data.write(file)
    return file.getvalue()


def ply_seeds() -> list[bytes]:
    return [written("ply"), written("apple_ply"), by_plyfile(text=False, byte_order=">")]


def ascii_seeds() -> list[bytes]:
    content = by_plyfile(text=True, byte_order="<")
    return [content, content.replace(b"\n", b"\r\n")]


def compressed_seeds() -> list[bytes]:
    return [written("compressed_ply"), written("compressed_ply", 260)]


def splat_seeds() -> list[bytes]:
    return [written("splat"), cases.written("splat", extreme_gaussians())[:640]]


def spz_seeds() -> list[bytes]:
    return [written("spz"), written("spz4")]


def plain_spz_seeds() -> list[bytes]:
    """Return version 3 before its compression, and the older versions with one Gaussian."""
    older = [
        np.array([0x5053474E, version, 1, 12 << 8], dtype="<u4").tobytes() + bytes(size + 1 + 3 + 3) + b"\x80" * 3
        for version, size in ((1, 6), (2, 9))
    ]
    return [gzip.decompress(written("spz")), *older]


_READERS: dict[str, tuple[Callable[[], list[bytes]], Callable[[bytes], object]]] = {
    "splat-ply": (ply_seeds, read),
    "splat-ply-ascii": (ascii_seeds, read),
    "splat-compressed-ply": (compressed_seeds, read),
    "splat-splat": (splat_seeds, lambda content: sane(read_splat(content))),
    "splat-spz": (spz_seeds, read),
    "splat-spz-inside": (plain_spz_seeds, lambda content: read(gzip.compress(content, 1))),
}
TARGETS = [Target(name, seeds, run, (SplatError,)) for name, (seeds, run) in _READERS.items()]

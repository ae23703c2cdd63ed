"""Splats that people bring."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch

from sharp_cog import formats
from sharp_cog.errors import SplatError
from sharp_cog.formats.splat import read_splat
from tests.fuzz.harness import Target
from tests.unit.splats import CAMERA, random_gaussians


def read(content: bytes) -> formats.Splat:
    return sane(formats.read(content))


def sane(splat: formats.Splat) -> formats.Splat:
    """Checks what every splat promises."""
    gaussians = splat.gaussians
    for values in (gaussians.means, gaussians.scales, gaussians.colors_linear, gaussians.opacities):
        assert values.dtype == torch.float32
        assert bool(values.isfinite().all())
    assert bool((gaussians.scales >= 0).all())
    for values in (gaussians.colors_linear, gaussians.opacities):
        assert bool(((values >= 0) & (values <= 1)).all())
    norms = gaussians.quaternions_wxyz.norm(dim=1)
    assert bool(((norms - 1).abs() < 1e-5).all())
    assert bool((gaussians.quaternions_wxyz[:, 0] >= 0).all())
    return splat


def written(write: Callable[..., None], num: int, **options: Any) -> bytes:
    file = io.BytesIO()
    write(file, random_gaussians(num), CAMERA, **options)
    return file.getvalue()


def ply_seeds() -> list[bytes]:
    return [written(formats.FORMATS["ply"].write, 20)]


def splat_seeds() -> list[bytes]:
    return [written(formats.FORMATS["splat"].write, 20)]


TARGETS = (
    Target("splat-ply", ply_seeds, read, (SplatError,)),
    Target("splat-splat", splat_seeds, lambda content: sane(read_splat(content)), (SplatError,)),
)

"""Fuzzing targets: splats of users, in every format that is read."""

from __future__ import annotations

import base64
import gzip
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from plyfile import PlyData

from sharp_cog import formats
from sharp_cog.errors import SplatError
from sharp_cog.formats.archive import Archive
from sharp_cog.formats.glb import SPZ_EXTENSIONS, read_glb
from sharp_cog.formats.ksplat import read_ksplat
from sharp_cog.formats.splat import read_splat
from tests.decoders import glb_document
from tests.formats import cases
from tests.formats.samples import glb_with_spz, sample
from tests.fuzz.harness import Target
from tests.splats import extreme_gaussians, random_gaussians

NUM = 20


def read(content: bytes) -> formats.Splat:
    return sane(formats.read(content))


def valid(splat: formats.Splat) -> formats.Splat:
    """Check a splat as `formats.read` does, which recognises these formats by more than their content."""
    return replace(splat, gaussians=formats._valid(splat.gaussians, drop_invalid=False)[0])


def sane(splat: formats.Splat) -> formats.Splat:
    """Check the invariants of every splat."""
    gaussians = splat.gaussians
    for values in gaussians.tensors().values():
        assert values.dtype == torch.float32
        assert bool(values.isfinite().all())
    assert bool((gaussians.scales >= 0).all())
    assert bool(((gaussians.opacities >= 0) & (gaussians.opacities <= 1)).all())
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


def zip_seeds() -> list[bytes]:
    return [written("sog"), sample("palette.sog")]


def sog_seeds() -> list[bytes]:
    """Return the metadata of SOGs."""
    return [Archive(content, ".sog").read("meta.json") for content in zip_seeds()]


def read_metadata(content: bytes) -> formats.Splat:
    """Read metadata in a zip with the images of a whole splat."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, zipfile.ZipFile(io.BytesIO(sample("palette.sog"))) as whole:
        archive.writestr("meta.json", content)
        for name in whole.namelist():
            if name != "meta.json":
                archive.writestr(name, whole.read(name))
    return read(file.getvalue())


def glb_seeds() -> list[bytes]:
    return [written("glb"), sample("plain.glb"), glb_with_spz(written("spz"), SPZ_EXTENSIONS[0])]


def gltf_seeds() -> list[bytes]:
    """Return glTFs with their buffers as text."""
    found = []
    for content in glb_seeds():
        document, binary = glb_document(content)
        document["buffers"][0]["uri"] = "data:application/octet-stream;base64," + base64.b64encode(binary).decode()
        found.append(json.dumps(document).encode())
    return found


def usdz_seeds() -> list[bytes]:
    return [written("usdz", 3)]


def ksplat_seeds() -> list[bytes]:
    return [sample(f"{name}.ksplat") for name in ("level0", "level1", "level2")]


_READERS: dict[str, tuple[Callable[[], list[bytes]], Callable[[bytes], object]]] = {
    "splat-ply": (ply_seeds, read),
    "splat-ply-ascii": (ascii_seeds, read),
    "splat-compressed-ply": (compressed_seeds, read),
    "splat-splat": (splat_seeds, lambda content: sane(valid(read_splat(content)))),
    "splat-spz": (spz_seeds, read),
    "splat-sog": (zip_seeds, read),
    "splat-sog-meta": (sog_seeds, read_metadata),
    "splat-glb": (glb_seeds, read),
    "splat-gltf": (gltf_seeds, lambda content: sane(read_glb(content))),
    "splat-usdz": (usdz_seeds, read),
    "splat-ksplat": (ksplat_seeds, lambda content: sane(valid(read_ksplat(content)))),
    "splat-spz-inside": (plain_spz_seeds, lambda content: read(gzip.compress(content, 1))),
}
TARGETS = [Target(name, seeds, run, (SplatError,)) for name, (seeds, run) in _READERS.items()]

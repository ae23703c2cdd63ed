"""Depth maps in every file format."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sharp_cog.depth import embedded, maps
from sharp_cog.depth import files as depth_files
from sharp_cog.errors import DepthError, ImageError
from sharp_cog.geometry.camera import Camera
from sharp_cog.imaging import images
from tests.depth import portraits
from tests.depth.samples import exr, npy, npz, pfm, tiff
from tests.fuzz.harness import Target
from tests.imaging.samples import encoded

WIDTH, HEIGHT = 12, 8
DEPTH = np.random.default_rng(0).uniform(1, 5, (HEIGHT, WIDTH)).astype(np.float32)
MILLIMETRES = (DEPTH * 1000).astype(np.uint16)


def read(content: bytes) -> maps.DepthMap:
    """Decode a map for an image of its shape, and check the properties that every decoded map has."""
    height, width = depth_files.read(content).values.shape
    camera = Camera(width=width, height=height, focal_length_px=100.0)
    with contextlib.suppress(DepthError):  # Random numbers are no scene, so that most are refused.
        maps.decode(content, camera)
    depth_map = maps.decode(content, camera, depth_format="metric")
    known = depth_map.depth_m[~np.isnan(depth_map.depth_m)]
    assert depth_map.depth_m.shape == (height, width)
    assert known.size
    assert np.isfinite(known).all()
    assert known.min() >= np.float32(maps.MIN_DEPTH_M)
    assert known.max() <= maps.FAR_DEPTH_M
    filled = maps.known_everywhere(depth_map).depth_m
    assert np.isfinite(filled).all()
    assert filled.min() > 0
    return depth_map


def npy_seeds() -> list[bytes]:
    kinds = ("<f4", ">f4", "<f8", "<f2", "<u2", ">i4", "|u1", "|i1", "<u8")
    return [
        *(npy((DEPTH * 20).astype(kind)) for kind in kinds),
        npy(np.asfortranarray(DEPTH)),
        npy(DEPTH[None, :, :, None]),
        npy(DEPTH.view([("depth_m", "<f4")])),
    ]


def npz_seeds() -> list[bytes]:
    return [npz(depth=DEPTH), npz(a=DEPTH.astype(np.float64))]


def png_seeds() -> list[bytes]:
    from PIL import Image

    return [encoded(Image.fromarray(MILLIMETRES), "PNG")]


def tiff_seeds() -> list[bytes]:
    return [
        tiff(DEPTH),
        tiff(DEPTH, compression="tiff_deflate"),
        tiff(DEPTH, compression="tiff_lzw"),
        tiff(MILLIMETRES),
        tiff(DEPTH.astype(np.int32)),
    ]


def pfm_seeds() -> list[bytes]:
    return [pfm(DEPTH), pfm(DEPTH, ">")]


def exr_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return [exr(Path(folder), Z=DEPTH), exr(Path(folder), depth=DEPTH.astype(np.float16))]


_SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "depth-npy": npy_seeds,
    "depth-npz": npz_seeds,
    "depth-png": png_seeds,
    "depth-tiff": tiff_seeds,
    "depth-pfm": pfm_seeds,
    "depth-exr": exr_seeds,
}


def read_embedded(content: bytes) -> maps.DepthMap | None:
    """Decode the depth in a photograph, and check the properties that every decoded map has."""
    embedded.describe(content)
    depth_map = embedded.decode(content, images.decode(content))
    if depth_map is not None:
        known = depth_map.depth_m[~np.isnan(depth_map.depth_m)]
        assert known.size
        assert known.min() >= np.float32(maps.MIN_DEPTH_M)
        assert known.max() <= maps.FAR_DEPTH_M
    return depth_map


def jpeg_seeds() -> list[bytes]:
    return [
        portraits.gdepth_jpeg(),
        portraits.gdepth_jpeg(is_extended=True),
        portraits.dynamic_depth_jpeg(),
        portraits.apple_jpeg(),
    ]


def heic_seeds() -> list[bytes]:
    wall = np.random.default_rng(0).integers(0, 256, (64, 104, 3), dtype=np.uint8)
    rgb = np.zeros((64, 96, 3), np.uint8)
    auxiliary = portraits.full_box(b"auxC", b"urn:mpeg:hevc:2015:auxid:2\0" + portraits.SEI)
    pair = [portraits.cmin(90, 96), portraits.cmex(0)], [portraits.cmin(90, 96), portraits.cmex(64_000)]
    return [
        portraits.heic([rgb, rgb[..., 0]], properties=[[], [auxiliary]], auxiliary=[2]),
        portraits.heic([wall[:, :96], wall[:, 8:]], properties=pair, group=[1, 2]),
    ]


TARGETS = [
    *(Target(name, seeds, read, (DepthError,)) for name, seeds in _SEEDS.items()),
    Target("depth-in-jpeg", jpeg_seeds, read_embedded, (DepthError, ImageError)),
    Target("depth-in-heic", heic_seeds, read_embedded, (DepthError, ImageError)),
]

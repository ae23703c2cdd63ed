"""Depth files for tests, in every format."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import OpenEXR
from numpy.typing import NDArray
from PIL import Image

from sharp_cog.geometry.camera import Camera

CAMERA = Camera(width=120, height=80, focal_length_px=100.0)
DEPTH = np.random.default_rng(0).uniform(1, 5, (80, 120)).astype(np.float32)


def npy(array: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def npz(**arrays: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def tiff(array: NDArray[np.generic], **options: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "TIFF", **options)
    return file.getvalue()


def pfm(array: NDArray[np.float32], order: str = "<") -> bytes:
    """Return a portable float map, with rows from the bottom up and the byte order in the sign of the scale."""
    height, width = array.shape
    header = f"Pf\n{width} {height}\n{-1.0 if order == '<' else 1.0}\n".encode()
    return header + array[::-1].astype(f"{order}f4").tobytes()


def exr(folder: Path, **channels: NDArray[np.float32]) -> bytes:
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, channels) as file:
        file.write(str(folder / "made.exr"))
    return (folder / "made.exr").read_bytes()


def png(array: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def zip_of(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()

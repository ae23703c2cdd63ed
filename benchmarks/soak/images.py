"""Photographs and depth maps as people send them: every format, sizes from tiny to some megapixels."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import ExifTags, Image

from tests.data.parity import synthetic

NUM_IMAGES = 16
PANORAMA = 13
"""Number of the photograph whose film has the smallest frames."""


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """A photograph with its depth map.

    Attributes:
        name: Name for people.
        image: Content of the image file.
        depth: Content of a depth map of the same view.
    """

    name: str
    image: bytes
    depth: bytes


@dataclass(frozen=True, kw_only=True)
class _Kind:
    image_format: str
    width: int
    height: int
    depth_format: str
    mode: str = "RGB"
    exif: tuple[tuple[ExifTags.Base, int], ...] = ()


_SIDEWAYS = ((ExifTags.Base.Orientation, 6), (ExifTags.Base.FocalLengthIn35mmFilm, 26))
_KINDS = (
    _Kind(image_format="JPEG", width=640, height=480, depth_format="npy"),
    _Kind(image_format="PNG", width=33, height=40, depth_format="npy"),
    _Kind(image_format="WEBP", width=1200, height=800, depth_format="png"),
    _Kind(image_format="HEIF", width=1024, height=768, depth_format="npz"),
    _Kind(image_format="TIFF", width=800, height=1200, depth_format="tiff"),
    _Kind(image_format="JPEG", width=4000, height=3000, depth_format="png", exif=_SIDEWAYS),
    _Kind(image_format="AVIF", width=512, height=640, depth_format="pfm"),
    _Kind(image_format="BMP", width=320, height=240, depth_format="holes"),
    _Kind(image_format="GIF", width=300, height=200, depth_format="disparity"),
    _Kind(image_format="JPEG", width=900, height=1600, depth_format="npy", mode="L"),
    _Kind(image_format="PNG", width=1920, height=1080, depth_format="png", mode="RGBA"),
    _Kind(image_format="JPEG", width=1000, height=700, depth_format="tiff", mode="CMYK"),
    _Kind(image_format="WEBP", width=2400, height=1800, depth_format="npy"),
    _Kind(image_format="PNG", width=1600, height=200, depth_format="npy"),
    _Kind(image_format="HEIF", width=1512, height=2016, depth_format="png"),
    _Kind(image_format="JPEG", width=3000, height=2000, depth_format="npz"),
)
assert len(_KINDS) == NUM_IMAGES


def photograph(number: int) -> Photograph:
    """Return one of `NUM_IMAGES` photographs, with the same bytes every time."""
    kind = _KINDS[number]
    small = synthetic.photograph(max(8, kind.width // 8), max(8, kind.height // 8), seed=number)
    image = Image.fromarray(small).resize((kind.width, kind.height), Image.Resampling.BICUBIC).convert(kind.mode)
    content = io.BytesIO()
    if kind.image_format == "HEIF":
        pillow_heif.from_pillow(image).save(content)
    else:
        exif = Image.Exif()
        exif.update(kind.exif)
        image.save(content, kind.image_format, **({"exif": exif} if kind.exif else {}))
    # A phone's depth map is smaller than its image, and shows the upright view.
    factor = next(factor for factor in (4, 1) if kind.width % factor == kind.height % factor == 0)
    width, height = (kind.height, kind.width) if kind.exif else (kind.width, kind.height)
    return Photograph(
        name=f"{kind.image_format} {kind.mode} {kind.width}x{kind.height}, depth {kind.depth_format}",
        image=content.getvalue(),
        depth=_depth(kind.depth_format, width // factor, height // factor),
    )


def npy(values: NDArray[np.float32]) -> bytes:
    """Return a depth map as numpy saves it."""
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


def slope(width: int, height: int) -> NDArray[np.float32]:
    """Return (height, width) metres of ground, 6 m away at the top left and 1.5 m at the bottom right."""
    # The disparity of a plane is linear in the pixels. Other numbers would not be recognised as metres.
    return (1 / np.linspace(1 / 6.0, 1 / 1.5, width * height)).astype(np.float32).reshape(height, width)


def _depth(depth_format: str, width: int, height: int) -> bytes:
    metres, content = slope(width, height), io.BytesIO()
    if depth_format == "npy":
        return npy(metres)
    if depth_format == "holes":
        metres[height // 4 : height // 2, width // 4 : width // 2] = np.nan
        return npy(metres)
    if depth_format == "disparity":
        np.savez_compressed(content, disparity=1 / metres)
    elif depth_format == "npz":
        np.savez_compressed(content, depth=metres)
    elif depth_format == "pfm":
        content.write(f"Pf\n{width} {height}\n-1.0\n".encode() + metres[::-1].tobytes())
    elif depth_format == "png":
        Image.fromarray(np.round(metres * 1000).astype(np.uint16)).save(content, "PNG")
    else:
        assert depth_format == "tiff"
        Image.fromarray(metres).save(content, "TIFF", compression="tiff_lzw")
    return content.getvalue()

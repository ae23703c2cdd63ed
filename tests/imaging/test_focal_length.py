"""Focal lengths from options and EXIF, however odd."""

from __future__ import annotations

import struct

import pytest
from PIL import Image

from sharp_cog.config.options import PredictOptions
from sharp_cog.imaging.images import decode
from tests.imaging.samples import EXIF_IFD, FOCAL_LENGTH, FOCAL_LENGTH_35MM, NOISE, encoded, exif

DIAGONAL = (64**2 + 48**2) ** 0.5 / (36**2 + 24**2) ** 0.5


@pytest.mark.parametrize(
    ("tags", "options", "focal_length_px", "source"),
    [
        ({}, {}, 30 * DIAGONAL, "default"),
        ({"focal_length_35mm": 28}, {}, 28 * DIAGONAL, "exif_35mm"),
        ({"focal_length_35mm": 28, "focal_length": 4.2}, {}, 28 * DIAGONAL, "exif_35mm"),
        ({"focal_length_35mm": 0, "focal_length": 50}, {}, 50 * DIAGONAL, "exif"),
        ({"focal_length": 4.2}, {}, 4.2 * 8.4 * DIAGONAL, "exif"),
        ({"focal_length": float("nan")}, {}, 30 * DIAGONAL, "default"),
        ({"focal_length": 1e7}, {}, 30 * DIAGONAL, "default"),
        ({"focal_length": 0.0001}, {}, 30 * DIAGONAL, "default"),
        ({"focal_length_35mm": 65535, "focal_length": 50}, {}, 50 * DIAGONAL, "exif"),
        ({"focal_length_35mm": 28}, {"focal_length_mm": 35.0}, 35 * DIAGONAL, "caller"),
        ({"focal_length_35mm": 28}, {"focal_length_px": 77.0}, 77, "caller"),
    ],
)
def test_the_callers_focal_length_comes_first_then_exif_then_the_default(
    tags: dict[str, float], options: dict[str, float], focal_length_px: float, source: str
) -> None:
    content = encoded(Image.fromarray(NOISE), "JPEG", exif=exif(6, **tags))
    camera = decode(content, PredictOptions.from_mapping(options)).camera
    assert camera.focal_length_px == pytest.approx(focal_length_px)
    assert camera.focal_length_source == source
    assert (camera.width, camera.height) == (48, 64)


ASCII, SHORT, RATIONAL, SIGNED_RATIONAL, DOUBLE = 2, 3, 5, 10, 12


@pytest.mark.parametrize(
    ("kind", "count", "value"),
    [
        (ASCII, 5, b"wide\0"),
        (ASCII, 3, b"50\0"),
        (SHORT, 3, struct.pack("<3H", 28, 28, 28)),
        (RATIONAL, 1, struct.pack("<2I", 50, 0)),
        (RATIONAL, 1, struct.pack("<2I", 0, 0)),
        (RATIONAL, 2, struct.pack("<4I", 50, 1, 50, 1)),
        (SIGNED_RATIONAL, 1, struct.pack("<2i", -50, 1)),
        (DOUBLE, 1, struct.pack("<d", float("inf"))),
        (DOUBLE, 1, struct.pack("<d", 1e308)),
        (99, 1, bytes(8)),
    ],
)
@pytest.mark.parametrize("tag", [FOCAL_LENGTH, FOCAL_LENGTH_35MM])
def test_an_absurd_focal_length_in_exif_is_ignored(tag: int, kind: int, count: int, value: bytes) -> None:
    # The first directory points to a second one, and the only tag of that to the value behind it.
    block = b"II*\0" + struct.pack("<IHHHIII", 8, 1, EXIF_IFD, 4, 1, 26, 0)
    entry = struct.pack("<HHHI", 1, tag, kind, count)
    block += entry + (value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", 44)) + bytes(4) + value
    camera = decode(encoded(Image.fromarray(NOISE), "JPEG", exif=b"Exif\0\0" + block)).camera
    assert camera.focal_length_source == "default"
    assert camera.focal_length_px == pytest.approx(30 * DIAGONAL)

"""Focal lengths from options and EXIF, however odd."""

from __future__ import annotations

import math
import struct
from typing import Any

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
        ({"focal_length": 50}, {}, 30 * DIAGONAL, "default"),
        ({"focal_length": 4.2}, {}, 30 * DIAGONAL, "default"),
        ({"focal_length": float("nan")}, {}, 30 * DIAGONAL, "default"),
        ({"focal_length": 1e7}, {}, 30 * DIAGONAL, "default"),
        ({"focal_length": 0.0001}, {}, 30 * DIAGONAL, "default"),
        ({"focal_length_35mm": 65535}, {}, 30 * DIAGONAL, "default"),
        ({"focal_length_35mm": 28}, {"fov": 90.0}, 24, "caller"),
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


def canon(model: str, **tags: float) -> dict[str, Any]:
    return {"make": "Canon", "model": model, **tags}


def focal_plane(width_mm: float, *, pixels_x: int = 2272, pixels_y: int = 1704, unit: int = 2) -> dict[str, Any]:
    """Return the tags of the focal plane for a sensor of a width."""
    resolution = pixels_x / width_mm * {2: 25.4, 3: 10.0, 4: 1.0}[unit]
    sizes = {"pixels_x": pixels_x, "pixels_y": pixels_y, "resolution_x": resolution, "resolution_y": resolution}
    return {**sizes, "unit": unit}


@pytest.mark.parametrize(
    ("tags", "equivalent_mm"),
    [
        # By make and model. The values are those of the makers' tables and data sheets.
        (canon("Canon EOS 350D DIGITAL", focal_length=18), 29.0),
        (canon("Canon EOS DIGITAL REBEL XTi", focal_length=55), 88.0),
        (canon("Canon EOS R7", focal_length=18), 29.0),
        (canon("Canon EOS R6m2", focal_length=50), 50.0),
        (canon("Canon EOS-1D Mark III", focal_length=24), 31.0),
        (canon("Canon EOS 5D Mark IV", focal_length=35), 35.0),
        (canon("Canon PowerShot G7 X Mark II", focal_length=8.8), 24.0),
        ({"make": "NIKON CORPORATION", "model": "NIKON D70", "focal_length": 18}, 27.5),
        ({"make": "NIKON CORPORATION", "model": "NIKON D750", "focal_length": 50}, 50.0),
        ({"make": "NIKON CORPORATION", "model": "NIKON Z 50", "focal_length": 16}, 24.5),
        ({"make": "NIKON CORPORATION", "model": "NIKON 1 J1", "focal_length": 10}, 27.0),
        ({"make": "SONY", "model": "ILCE-6000", "focal_length": 16}, 24.5),
        ({"make": "SONY", "model": "ILCE-7M3", "focal_length": 28}, 28.0),
        ({"make": "SONY", "model": "DSC-RX100M3", "focal_length": 8.8}, 24.0),
        ({"make": "FUJIFILM", "model": "X-T30", "focal_length": 23}, 35.0),
        ({"make": "FUJIFILM", "model": "FinePix X100", "focal_length": 23}, 35.0),
        ({"make": "FUJIFILM", "model": "GFX 50R", "focal_length": 63}, 50.0),
        ({"make": "OLYMPUS IMAGING CORP.  ", "model": "E-PL3           ", "focal_length": 14}, 28.0),
        ({"make": "Panasonic", "model": "DMC-GF1", "focal_length": 20}, 40.0),
        ({"make": "PENTAX", "model": "PENTAX K-5", "focal_length": 35}, 53.5),
        ({"make": "RICOH IMAGING COMPANY, LTD.", "model": "RICOH GR III", "focal_length": 18.3}, 28.0),
        ({"make": "SAMSUNG", "model": "NX300", "focal_length": 18}, 27.7),
        ({"make": "LEICA CAMERA AG", "model": "LEICA Q2", "focal_length": 28}, 28.0),
        ({"make": "Hasselblad", "model": "L1D-20c", "focal_length": 10.26}, 28.0),
        ({"make": "DJI", "model": "FC6310", "focal_length": 8.8}, 24.0),
        ({"make": "DJI", "model": "FC220", "focal_length": 4.73}, 26.0),
        ({"make": "DJI", "model": "FC3582", "focal_length": 6.72}, 24.0),
        ({"make": "Hasselblad", "model": "L2D-20c", "focal_length": 12.29}, 24.0),
        ({"model": "NIKON D90", "focal_length": 35}, 53.5),
        # A tag of 1 to 5 mm is not believed.
        ({"make": "GoPro", "model": "HERO4 Session", "focal_length_35mm": 1, "focal_length": 3.0}, 16.9),
        (canon("Canon EOS 5D", focal_length_35mm=5, focal_length=50), 50.0),
        # By the focal plane, which must have the size of a sensor that exists.
        (canon("Canon PowerShot S1", focal_length=7.40625, **focal_plane(7.11)), 36.0),
        ({"focal_length": 18, **focal_plane(22.2, pixels_x=3456, pixels_y=2304)}, 29.0),
        ({"focal_length": 8, **focal_plane(8.8, unit=3)}, 31.4),
        ({"focal_length": 8, **focal_plane(8.8, unit=4)}, 31.4),
        # A make and model rank above the focal plane: those tags of the 6D Mark II say 23.7 mm.
        (canon("Canon EOS 6D Mark II", focal_length=50, **focal_plane(23.75, pixels_x=6240, pixels_y=4160)), 50.0),
        # Phones, with Apple's factor, and a digital zoom.
        ({"make": "Apple", "model": "iPhone 5", "focal_length": 4.12}, 4.12 * 8.4),
        ({"make": "samsung", "model": "GT-I9300", "focal_length": 3.7, "zoom": 2.0}, 3.7 * 8.4 * 2),
        ({"make": "Apple", "model": "iPhone 13", "focal_length": 5.1, "focal_length_35mm": 52, "zoom": 2.0}, 52.0),
        ({"make": "Google", "model": "Pixel 4", "focal_length": 4.38, "focal_length_35mm": 27, "zoom": 2.0}, 54.0),
        ({"make": "Google", "model": "Pixel 6", "focal_length": 6.81, "focal_length_35mm": 24, "zoom": 0.0}, 24.0),
        ({"make": "Google", "model": "Pixel 6", "focal_length": 6.81, "focal_length_35mm": 72, "zoom": 3.0}, 72.0),
    ],
)
def test_the_equivalent_follows_from_the_camera(tags: dict[str, Any], equivalent_mm: float) -> None:
    shape = NOISE if tags.get("pixels_y", 3) * 4 == tags.get("pixels_x", 4) * 3 else NOISE[:43]
    camera = decode(encoded(Image.fromarray(shape), "JPEG", exif=exif(1, **tags))).camera
    found_mm = camera.focal_length_px * math.hypot(36, 24) / math.hypot(camera.width, camera.height)
    assert found_mm == pytest.approx(equivalent_mm, rel=0.04)
    is_named = tags.get("focal_length_35mm", 0) >= 6
    assert camera.focal_length_source == ("exif_35mm" if is_named else "exif")
    assert bool(camera.focal_length_reason) is not is_named


@pytest.mark.parametrize(
    "tags",
    [
        {"make": "Unknown", "model": "Camera", "focal_length": 50},
        {"make": "Apple", "model": "iPhone 14 Pro", "focal_length": 6.86},  # Its sensor is twice as large.
        {"focal_length": 8, **focal_plane(10.3)},  # There is no such sensor.
        {"focal_length": 8, **focal_plane(7.11, pixels_y=2272)},  # Another shape than the image: cropped.
        {"focal_length": 8, **focal_plane(7.11), "unit": 9},
        {"focal_length": 8, **focal_plane(7.11), "resolution_y": 0},
        {"focal_length_35mm": 3},
        {"focal_length": 1, **canon("Canon EOS 5D")},
    ],
)
def test_without_evidence_the_default_is_taken_and_named(tags: dict[str, Any]) -> None:
    camera = decode(encoded(Image.fromarray(NOISE), "JPEG", exif=exif(1, **tags))).camera
    assert camera.focal_length_px == pytest.approx(30 * DIAGONAL)
    assert camera.focal_length_source == "default"


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

"""TIFF files that Pillow alone reads wrong or not at all."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from PIL import Image

from sharp_cog.errors import ImageError
from sharp_cog.imaging import tiff
from sharp_cog.imaging.images import decode
from tests.imaging.samples import FOCAL_LENGTH_35MM, NOISE, RNG, SMOOTH, Pixels, encoded, rgb_tags, tiff_file


def planes_of(pixels: Pixels, order: str) -> list[bytes]:
    """Return the planes of 16 bits of 8-bit pixels."""
    return [(pixels[..., channel].astype(order + "u2") * 257).tobytes() for channel in range(pixels.shape[2])]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("compression", [1, 8])
def test_planes_of_16_bits_are_read(order: str, big: bool, compression: int) -> None:
    planes = planes_of(NOISE, order)
    strips = planes if compression == 1 else [zlib.compress(plane) for plane in planes]
    tags = rgb_tags(NOISE, bits=16, planar=2, compression=compression)
    content = tiff_file(tags, strips, order=order, big=big, exif_tags={FOCAL_LENGTH_35MM: ("H", 28)})
    source = decode(content)
    np.testing.assert_array_equal(source.rgb, NOISE)
    assert source.image_format == "TIFF"
    assert source.camera.focal_length_source == "exif_35mm"


def test_several_strips_a_plane_and_an_orientation_are_read() -> None:
    strips = [half for plane in planes_of(NOISE, "<") for half in (plane[: len(plane) // 2], plane[len(plane) // 2 :])]
    tags = {**rgb_tags(NOISE, bits=16, planar=2), 278: ("I", 24), 274: ("H", 6)}
    np.testing.assert_array_equal(decode(tiff_file(tags, strips)).rgb, np.rot90(NOISE, -1))


def test_a_fourth_plane_is_opacity() -> None:
    pixels = np.dstack([NOISE, RNG.integers(0, 256, (48, 64), dtype=np.uint8)])
    content = tiff_file({**rgb_tags(pixels, bits=16, planar=2), 338: ("H", 2)}, planes_of(pixels, "<"))
    expected = decode(encoded(Image.fromarray(pixels), "PNG")).rgb
    np.testing.assert_array_equal(decode(content).rgb, expected)


def test_planes_of_8_bits_are_read_as_by_pillow() -> None:
    planes = [NOISE[..., channel].tobytes() for channel in range(3)]
    np.testing.assert_array_equal(decode(tiff_file(rgb_tags(NOISE, bits=8, planar=2), planes)).rgb, NOISE)


def test_planes_of_other_colours_are_refused_by_what_they_are() -> None:
    tags = {**rgb_tags(NOISE, bits=16, planar=2), 262: ("H", 8)}  # CIE Lab
    with pytest.raises(ImageError, match="planes of 16 bits that are not red, green and blue"):
        decode(tiff_file(tags, planes_of(NOISE, "<")))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 16])
def test_bigtiff_of_either_order_is_read_with_its_tags(order: str, bits: int) -> None:
    pixels = SMOOTH.tobytes() if bits == 8 else (SMOOTH.astype(order + "u2") * 257).tobytes()
    tags = {**rgb_tags(SMOOTH, bits=bits), 274: ("H", 6)}
    content = tiff_file(tags, [pixels], order=order, big=True, exif_tags={FOCAL_LENGTH_35MM: ("H", 28)})
    source = decode(content)
    np.testing.assert_array_equal(source.rgb, np.rot90(SMOOTH, -1))
    assert source.camera.focal_length_source == "exif_35mm"


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_truncated_bigtiff_is_refused(order: str) -> None:
    content = tiff_file(rgb_tags(SMOOTH, bits=8), [SMOOTH.tobytes()], order=order, big=True)
    for percent in range(0, 100, 10):
        with pytest.raises(ImageError):
            decode(content[: len(content) * percent // 100])


def test_a_place_beyond_four_gigabytes_is_an_error() -> None:
    directory = tiff.Directory(">", True, {273: tiff.Entry(16, 1, (1 << 40).to_bytes(8, "big"))})
    with pytest.raises(ValueError, match="beyond 4 GB"):
        tiff.as_classic(b"MM\0+" + bytes(12), directory)


@pytest.mark.parametrize(
    ("tags", "name"),
    [
        ({50706: ("B", [1, 4, 0, 0])}, "DNG"),
        ({259: ("H", 34713)}, "Nikon NEF"),
        ({259: ("H", 32767)}, "Sony ARW"),
        ({259: ("H", 65535)}, "Pentax PEF"),
        ({262: ("H", 32803)}, "TIFF"),
        ({254: ("I", 1)}, "TIFF"),
    ],
)
def test_camera_raws_are_told_from_images(tags: dict[int, tuple[str, object]], name: str) -> None:
    content = tiff_file({**rgb_tags(NOISE, bits=8), **tags}, [NOISE.tobytes()])
    directory = tiff.read_directory(content)
    assert directory is not None
    assert directory.raw == name
    with pytest.raises(ImageError, match="camera raw"):
        decode(content)


def test_a_compression_that_is_unknown_is_no_sign_of_a_broken_file() -> None:
    content = tiff_file(rgb_tags(NOISE, bits=8, compression=60_000), [NOISE.tobytes()])
    with pytest.raises(ImageError, match="a TIFF of compression 60000, which cannot be read"):
        decode(content)
    floats = tiff_file({**rgb_tags(NOISE, bits=32), 339: ("H", [3, 3, 3])}, [bytes(48 * 64 * 12)])
    with pytest.raises(ImageError, match="of a kind that cannot be read"):
        decode(floats)

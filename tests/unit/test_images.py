"""Decoding pictures: every format and mode against Pillow's own reading, and every refusal."""

from __future__ import annotations

import io
import logging
import struct
import tracemalloc
import zlib

import numpy as np
import pillow_heif
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from sharp_cog.errors import ImageError
from sharp_cog.images import decode
from sharp_cog.options import PredictOptions

Pixels = NDArray[np.uint8]

RNG = np.random.default_rng(0)
NOISE: Pixels = RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8)
SMOOTH: Pixels = np.kron(RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
ORIENTATION, EXIF_IFD, FOCAL_LENGTH, FOCAL_LENGTH_35MM = 0x0112, 0x8769, 0x920A, 0xA405


def encoded(image: Image.Image, format_name: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format_name, **options)
    return file.getvalue()


def heic(pixels: Pixels, **options: object) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(file, quality=95, **options)
    return file.getvalue()


def exif(orientation: int = 1, **tags: object) -> Image.Exif:
    block = Image.Exif()
    block[ORIENTATION] = orientation
    numbers = {"focal_length": FOCAL_LENGTH, "focal_length_35mm": FOCAL_LENGTH_35MM}
    if tags:
        block[EXIF_IFD] = {numbers[name]: value for name, value in tags.items()}
    return block


@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "BMP", "WEBP"])
def test_lossless_formats_give_the_pixels_back(format_name: str) -> None:
    options = {"lossless": True} if format_name == "WEBP" else {}
    source = decode(encoded(Image.fromarray(NOISE), format_name, **options))
    np.testing.assert_array_equal(source.rgb, NOISE)
    assert source.image_format == format_name
    assert (source.camera.width, source.camera.height) == (64, 48)
    assert source.rgb.flags.c_contiguous


@pytest.mark.parametrize("format_name", ["JPEG", "GIF", "AVIF"])
def test_lossy_formats_give_what_pillow_gives(format_name: str) -> None:
    content = encoded(Image.fromarray(SMOOTH), format_name)
    np.testing.assert_array_equal(decode(content).rgb, Image.open(io.BytesIO(content)).convert("RGB"))


def test_heic_is_read_and_turned_once() -> None:
    for orientation in (1, 3, 6, 8):
        upright = ImageOps.exif_transpose(_tagged(Image.fromarray(SMOOTH), orientation))
        source = decode(heic(SMOOTH, exif=exif(orientation, focal_length_35mm=28).tobytes()))
        # The writer turns EXIF's orientation into the file's own transformation.
        assert source.rgb.shape == np.asarray(upright).shape
        assert np.abs(source.rgb.astype(int) - np.asarray(upright).astype(int)).mean() < 6
        assert source.image_format == "HEIC"
        assert source.camera.focal_length_source == "exif_35mm"


def _tagged(image: Image.Image, orientation: int) -> Image.Image:
    content = encoded(image, "PNG", exif=exif(orientation))
    return Image.open(io.BytesIO(content))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "JPEG", "WEBP", "AVIF"])
def test_all_orientations_are_applied(orientation: int, format_name: str) -> None:
    content = encoded(Image.fromarray(NOISE), format_name, exif=exif(orientation))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(decode(content).rgb, expected)


def test_an_unknown_orientation_counts_as_upright() -> None:
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(NOISE), "PNG", exif=exif(77))).rgb, NOISE)


def test_transparency_is_laid_over_white() -> None:
    alpha = RNG.integers(0, 256, (48, 64), dtype=np.uint8)
    rgba = np.dstack([NOISE, alpha])
    share = alpha[..., None] / 255
    expected = NOISE * share + 255 * (1 - share)
    assert np.abs(decode(encoded(Image.fromarray(rgba), "PNG")).rgb - expected).max() <= 1.5
    grey = decode(encoded(Image.fromarray(np.dstack([NOISE[..., 0], alpha])), "PNG")).rgb
    assert np.abs(grey - expected[..., :1]).max() <= 1.5


def test_a_transparent_palette_entry_is_white() -> None:
    image = Image.fromarray(SMOOTH).quantize(8)
    colour = np.asarray(image)[0, 0]
    source = decode(encoded(image, "PNG", transparency=int(colour)))
    inside = np.asarray(image) == colour
    assert (source.rgb[inside] == 255).all()
    assert not (source.rgb[~inside] == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_give_what_pillow_gives(mode: str) -> None:
    image = Image.fromarray(SMOOTH).convert(mode)
    np.testing.assert_array_equal(decode(encoded(image, "TIFF" if mode != "P" else "PNG")).rgb, image.convert("RGB"))


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    for format_name in ("PNG", "TIFF"):
        rgb = decode(encoded(Image.fromarray(values), format_name)).rgb
        np.testing.assert_array_equal(rgb[..., 0], np.rint(values / 257))
        np.testing.assert_array_equal(rgb[..., 0], rgb[..., 2])


def test_floats_whose_white_is_unknown_are_refused() -> None:
    content = encoded(Image.fromarray(np.ones((48, 64), np.float32)), "TIFF")
    with pytest.raises(ImageError, match="8 or 16 bits"):
        decode(content)


def linear_profile() -> bytes:
    """An ICC profile with sRGB's primaries and a gamma of 1, put together by hand from ICC.1:2010."""

    def s15(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(s15, values))

    tags = {
        b"rXYZ": xyz(0.4360, 0.2225, 0.0139),
        b"gXYZ": xyz(0.3851, 0.7169, 0.0971),
        b"bXYZ": xyz(0.1431, 0.0606, 0.7141),
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), b"curv\x00\x00\x00\x00\x00\x00\x00\x00"),
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 7) + b"linear\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
    }
    table, data, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">II", offset + len(data), len(value))
        data += value
    size = offset + len(data)
    header = struct.pack(">I4sI4s4s4s12s4s", size, b"none", 0x02400000, b"mntr", b"RGB ", b"XYZ ", bytes(12), b"acsp")
    header += bytes(128 - len(header) - 60) + s15(0.9642) + s15(1.0) + s15(0.8249) + bytes(48)
    return header + struct.pack(">I", len(tags)) + table + data


def test_a_colour_profile_is_applied() -> None:
    ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], 48, axis=0).repeat(3, axis=2)
    rgb = decode(encoded(Image.fromarray(ramp), "PNG", icc_profile=linear_profile())).rgb
    linear = ramp / 255
    srgb = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(rgb - srgb).max() <= 1.5


def test_a_garbage_profile_is_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    rgb = decode(encoded(Image.fromarray(NOISE), "PNG", icc_profile=b"garbage" * 50)).rgb
    np.testing.assert_array_equal(rgb, NOISE)
    assert "profile" in caplog.text


def test_a_profile_for_other_pixels_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    cmyk = Image.fromarray(NOISE).convert("CMYK")
    rgb = decode(encoded(cmyk, "TIFF", icc_profile=linear_profile())).rgb
    np.testing.assert_array_equal(rgb, cmyk.convert("RGB"))
    assert "not for CMYK" in caplog.text


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
        ({"focal_length_35mm": 28}, {"focal_length_mm": 35.0}, 35 * DIAGONAL, "caller"),
        ({"focal_length_35mm": 28}, {"focal_length_px": 77.0}, 77, "caller"),
    ],
)
def test_focal_length(tags: dict[str, float], options: dict[str, float], focal_length_px: float, source: str) -> None:
    content = encoded(Image.fromarray(NOISE), "JPEG", exif=exif(6, **tags))
    camera = decode(content, PredictOptions.from_mapping(options)).camera
    assert camera.focal_length_px == pytest.approx(focal_length_px)
    assert camera.focal_length_source == source
    assert (camera.width, camera.height) == (48, 64)


def test_a_broken_exif_block_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    content = encoded(Image.fromarray(NOISE), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40)
    with caplog.at_level(logging.WARNING):
        assert decode(content).camera.focal_length_source == "default"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "zero bytes"),
        (b"This is not a picture, it is a text." * 9, "not a picture: give one of JPEG"),
        (b"%PDF-1.7 nothing", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (encoded(Image.new("RGB", (31, 64)), "PNG"), "31x64, the least is 32"),
        (encoded(Image.new("RGB", (330, 32)), "PNG"), "330x32, the longest shape is 10:1"),
        (heic(SMOOTH)[:300], "broken or truncated|not a picture"),
    ],
)
def test_refusals(content: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode(content)


def huge_png(width: int, height: int) -> bytes:
    content = bytearray(encoded(Image.new("RGB", (64, 64)), "PNG"))
    content[16:24] = struct.pack(">II", width, height)
    checksum = zlib.crc32(content[12:29])
    content[29:33] = struct.pack(">I", checksum)
    return bytes(content)


@pytest.mark.parametrize(("width", "height"), [(14000, 9000), (40000, 40000), (2**31 - 1, 2**31 - 1)])
def test_too_large_is_refused_before_anything_is_allocated(width: int, height: int) -> None:
    content = huge_png(width, height)
    tracemalloc.start()
    with pytest.raises(ImageError, match="downscale it"):
        decode(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_the_limit_is_a_setting_and_is_named() -> None:
    content = encoded(Image.fromarray(NOISE), "PNG")
    decode(content, max_pixels=64 * 48)
    with pytest.raises(ImageError, match=r"64x48 \(0\.0 MP\), the limit is 0\.003071 MP"):
        decode(content, max_pixels=64 * 48 - 1)


def test_pillows_global_settings_stay() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, set(Image.OPEN))
    decode(encoded(Image.fromarray(NOISE), "PNG"))
    decode(heic(SMOOTH))
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, set(Image.OPEN)) == before
    assert not {"HEIF", "HEIC"} & set(Image.OPEN)


WHOLE = {name: encoded(Image.fromarray(SMOOTH), name) for name in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")}
WHOLE["HEIC"] = heic(SMOOTH)


@pytest.mark.parametrize("name", WHOLE)
def test_truncated_pictures_are_refused(name: str) -> None:
    content = WHOLE[name]
    for percent in range(0, 91, 5):  # From about 95 % on, a small PNG has all its pixels.
        with pytest.raises(ImageError):
            decode(content[: len(content) * percent // 100])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(WHOLE)),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_flipped_bytes_give_a_picture_or_an_image_error(name: str, flips: list[tuple[int, int]]) -> None:
    content = bytearray(WHOLE[name])
    for position, value in flips:
        content[position % len(content)] = value
    try:
        source = decode(bytes(content), max_pixels=1_000_000)
    except ImageError:
        return
    assert source.rgb.shape == (source.camera.height, source.camera.width, 3)

"""Decoding pictures: every format and mode against Pillow's own reading, and every refusal."""

from __future__ import annotations

import io
import logging
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib

import numpy as np
import pillow_heif
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, ImageOps

from sharp_cog.config.options import PredictOptions
from sharp_cog.errors import ImageError
from sharp_cog.imaging.images import decode

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
    assert source.rgb.flags.writeable  # torch.from_numpy warns of what is not.


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


def test_a_multi_picture_jpeg_gives_its_first_picture() -> None:
    second = Image.fromarray(NOISE)
    content = encoded(Image.fromarray(SMOOTH), "MPO", save_all=True, append_images=[second])
    expected = Image.open(io.BytesIO(content))
    assert expected.format == "MPO"
    np.testing.assert_array_equal(decode(content).rgb, expected)


def test_ten_bit_heic_is_scaled_to_eight() -> None:
    file = io.BytesIO()
    sixteen_bits = (SMOOTH.astype(np.uint16) * 257).tobytes()
    pillow_heif.from_bytes("RGB;16", (SMOOTH.shape[1], SMOOTH.shape[0]), sixteen_bits).save(file, quality=95)
    assert pillow_heif.open_heif(file.getvalue()).info["bit_depth"] == 10
    assert np.abs(decode(file.getvalue()).rgb.astype(int) - SMOOTH).mean() < 6


def test_transparent_heic_is_laid_over_white() -> None:
    rgba = np.dstack([SMOOTH, np.zeros(SMOOTH.shape[:2], np.uint8)])
    assert decode(heic(rgba)).rgb.min() > 250


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


@pytest.mark.parametrize(
    ("mode", "format_name"),
    [(mode, "TIFF") for mode in ("1", "L", "P", "CMYK", "YCbCr")] + [("1", "PNG"), ("P", "PNG"), ("P", "BMP")],
)
def test_other_modes_give_what_pillow_gives(mode: str, format_name: str) -> None:
    image = Image.fromarray(SMOOTH).convert(mode)
    np.testing.assert_array_equal(decode(encoded(image, format_name)).rgb, image.convert("RGB"))


def test_cmyk_jpeg_without_ink_is_white() -> None:
    # Adobe's inverted values: ink 0 is stored as 255.
    ink = np.zeros((48, 64, 4), np.uint8)
    ink[:, 32:, 3] = 255
    rgb = decode(encoded(Image.fromarray(ink, "CMYK"), "JPEG", quality=95)).rgb
    assert rgb[:, :24].min() > 250
    assert rgb[:, 40:].max() < 5


def test_lab_is_converted_to_srgb() -> None:
    lab = ImageCms.profileToProfile(
        Image.fromarray(SMOOTH), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    # Eight bits of Lab are coarser than eight bits of sRGB.
    assert np.abs(decode(encoded(lab, "TIFF")).rgb.astype(int) - SMOOTH).mean() < 2


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    for format_name in ("PNG", "TIFF"):
        rgb = decode(encoded(Image.fromarray(values), format_name)).rgb
        np.testing.assert_array_equal(rgb[..., 0], np.rint(values / 257))
        np.testing.assert_array_equal(rgb[..., 0], rgb[..., 2])


def test_a_transparent_value_of_sixteen_bits_is_white() -> None:
    values = np.full((48, 64), 5000, np.uint16)
    values[:24] = 1234
    rgb = decode(encoded(Image.fromarray(values), "PNG", transparency=1234)).rgb
    assert (rgb[:24] == 255).all()
    assert (rgb[24:] == 19).all()


def grey_tiff(bits: int, pixels: bytes, *, photometric: int = 1, subfile_type: int = 0) -> bytes:
    """An uncompressed 64 x 48 TIFF of one channel, put together by hand: Pillow writes neither of these."""
    short, long = 3, 4
    tags = [
        (254, long, subfile_type),
        (256, short, 64),
        (257, short, 48),
        (258, short, bits),
        (259, short, 1),
        (262, short, photometric),
        (273, long, 8 + 2 + 12 * 10 + 4),
        (277, short, 1),
        (278, short, 48),
        (279, long, len(pixels)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels


def test_twelve_bits_and_inverted_sixteen_bits() -> None:
    assert (decode(grey_tiff(12, b"\xff" * (64 * 48 * 3 // 2))).rgb == 255).all()
    values = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype("<u2")
    inverted = decode(grey_tiff(16, values.tobytes(), photometric=0)).rgb
    np.testing.assert_array_equal(inverted[..., 0], 255 - np.rint(values / 257))


def test_the_preview_in_a_camera_raw_is_not_taken_for_the_picture() -> None:
    content = grey_tiff(8, bytes(64 * 48))
    assert decode(content).rgb.max() == 0
    with pytest.raises(ImageError, match="camera raw"):
        decode(grey_tiff(8, bytes(64 * 48), subfile_type=1))


def test_floats_whose_white_is_unknown_are_refused() -> None:
    content = encoded(Image.fromarray(np.ones((48, 64), np.float32)), "TIFF")
    with pytest.raises(ImageError, match="8 or 16 bits"):
        decode(content)


def s15(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def icc_profile(kind: bytes, space: bytes, connection_space: bytes, name: str, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile put together by hand from ICC.1:2001 (version 2.4)."""
    tags = {
        **tags,
        b"wtpt": b"XYZ \0\0\0\0" + s15(0.9642) + s15(1.0) + s15(0.8249),
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name) + 1) + name.encode() + bytes(79),
        b"cprt": b"text\0\0\0\0none\0",
    }
    table, data, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, value in tags.items():
        table += tag + struct.pack(">II", offset + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    size = offset + len(data)
    header = struct.pack(
        ">I4sI4s4s4s12s4s", size, b"none", 0x02400000, kind, space, connection_space, bytes(12), b"acsp"
    )
    header += bytes(128 - len(header) - 60) + s15(0.9642) + s15(1.0) + s15(0.8249) + bytes(48)
    return header + struct.pack(">I", len(tags)) + table + data


LINEAR_CURVE = b"curv" + bytes(8)


def linear_profile(name: str = "linear") -> bytes:
    """sRGB's primaries with a gamma of 1."""
    columns = {b"r": (0.4360, 0.2225, 0.0139), b"g": (0.3851, 0.7169, 0.0971), b"b": (0.1431, 0.0606, 0.7141)}
    tags = {key + b"XYZ": b"XYZ \0\0\0\0" + b"".join(map(s15, column)) for key, column in columns.items()}
    tags |= {key + b"TRC": LINEAR_CURVE for key in columns}
    return icc_profile(b"mntr", b"RGB ", b"XYZ ", name, tags)


def grey_profile() -> bytes:
    """Grey with a gamma of 1.8."""
    curve = b"curv" + struct.pack(">IIH", 0, 1, round(1.8 * 256))
    return icc_profile(b"mntr", b"GRAY", b"XYZ ", "grey", {b"kTRC": curve})


def ink_profile() -> bytes:
    """CMYK by a table of 2 x 2 x 2 x 2 Lab colours: paper is white, cyan alone is (60, -30, -45), all else black."""
    table = bytearray(b"\0\x80\x80" * 16)
    table[0:3] = 255, 128, 128  # The last ink varies fastest: no ink is entry 0, cyan alone entry 8.
    table[24:27] = round(60 * 2.55), 128 - 30, 128 - 45
    identity = b"".join(map(s15, (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    ramps = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity + ramps * 4 + bytes(table) + ramps * 3
    return icc_profile(b"prtr", b"CMYK", b"Lab ", "ink", {b"A2B0": lut})


def srgb_from_linear(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """IEC 61966-2-1, to 0..255."""
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clip(1e-9) ** (1 / 2.4) - 0.055)


def srgb_from_lab(lightness: float, a: float, b: float) -> NDArray[np.float64]:
    """CIE Lab with the D50 white of ICC, to 0..255."""
    y = (lightness + 16) / 116
    roots = np.array([y + a / 500, y, y - b / 200])
    xyz = np.where(roots > 6 / 29, roots**3, (roots - 4 / 29) * 3 * (6 / 29) ** 2) * [0.9642, 1.0, 0.8249]
    columns = [[0.4360, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]]
    return srgb_from_linear(np.linalg.solve(np.array(columns), xyz).clip(0, 1))


RAMP: Pixels = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None], 48, axis=0)


@pytest.mark.parametrize("name", ["linear", "sRGB-elle-V2-g10.icc"])
def test_a_colour_profile_is_applied(name: str) -> None:
    content = encoded(Image.fromarray(np.dstack([RAMP] * 3)), "PNG", icc_profile=linear_profile(name))
    assert np.abs(decode(content).rgb - srgb_from_linear(RAMP / 255)[..., None]).max() <= 1.5


@pytest.mark.parametrize("with_alpha", [False, True])
def test_a_grey_profile_is_applied(with_alpha: bool) -> None:
    grey = np.dstack([RAMP, np.full_like(RAMP, 255)]) if with_alpha else RAMP
    content = encoded(Image.fromarray(grey), "PNG", icc_profile=grey_profile())
    expected = srgb_from_linear((RAMP / 255) ** 1.8)
    assert np.abs(expected - RAMP).max() > 10  # What no profile would give.
    assert np.abs(decode(content).rgb - expected[..., None]).max() <= 1.5


@pytest.mark.parametrize("format_name", ["TIFF", "JPEG"])
def test_an_ink_profile_is_applied(format_name: str) -> None:
    ink = np.zeros((48, 64, 4), np.uint8)
    ink[:, 32:, 0] = 255
    rgb = decode(encoded(Image.fromarray(ink, "CMYK"), format_name, icc_profile=ink_profile())).rgb
    assert np.abs(rgb[:, :24].astype(float) - 255).max() <= 3
    assert np.abs(rgb[:, 40:] - srgb_from_lab(60, -30, -45)).max() <= 6
    assert np.abs(srgb_from_lab(60, -30, -45) - [0, 255, 255]).max() > 50  # What no profile would give.


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
        ({"focal_length": 0.0001}, {}, 30 * DIAGONAL, "default"),
        ({"focal_length_35mm": 65535, "focal_length": 50}, {}, 50 * DIAGONAL, "exif"),
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
def test_an_absurd_focal_length_in_exif_is_passed_over(tag: int, kind: int, count: int, value: bytes) -> None:
    # One directory that points to another, whose one tag points to the value behind it.
    block = b"II*\0" + struct.pack("<IHHHIII", 8, 1, EXIF_IFD, 4, 1, 26, 0)
    entry = struct.pack("<HHHI", 1, tag, kind, count)
    block += entry + (value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", 44)) + bytes(4) + value
    camera = decode(encoded(Image.fromarray(NOISE), "JPEG", exif=b"Exif\0\0" + block)).camera
    assert camera.focal_length_source == "default"
    assert camera.focal_length_px == pytest.approx(30 * DIAGONAL)


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


HUGE = {
    "PNG": huge_png(14000, 9000),
    "WebP": b"RIFF"
    + struct.pack("<I", 5018)
    + b"WEBPVP8L"
    + struct.pack("<IBI", 5005, 47, 13999 | 8999 << 14)
    + bytes(5000),
    "GIF": b"GIF89a" + struct.pack("<HH", 14000, 9000) + bytes(5000),
    "BMP": b"BM" + struct.pack("<IIIIiiHHIIiiII", 5054, 0, 54, 40, 14000, 9000, 1, 24, *[0] * 6) + bytes(5000),
}


@pytest.mark.parametrize("name", HUGE)
def test_too_large_is_refused_where_there_is_no_memory_for_it(name: str) -> None:
    script = (
        "import resource, sys\n"
        "from sharp_cog.errors import ImageError\n"
        "from sharp_cog.imaging.images import decode\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000,) * 2)\n"
        "try:\n"
        "    decode(sys.stdin.buffer.read())\n"
        "except ImageError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], input=HUGE[name], capture_output=True, check=True)
    assert done.stdout.decode() == "the picture is 14000x9000 (126.0 MP), the limit is 100 MP: downscale it\n"


@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF", "BMP", "GIF", "AVIF"])
@pytest.mark.parametrize("pillows_limit", [2000, 1000])  # It warns from the limit on, and refuses from twice it.
def test_pillows_own_limit_does_not_get_in_the_way(
    name: str, pillows_limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows_limit)
    content = encoded(Image.fromarray(NOISE), name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(content).rgb.shape == NOISE.shape


def test_pillows_own_limit_is_named_where_it_stands_in_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"too large for Pillow to decode .*3072 pixels.*limit of 2000"):
        decode(encoded(Image.fromarray(NOISE), "WEBP"))


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

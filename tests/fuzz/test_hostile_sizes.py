"""Images with huge sizes and countless parts: each is refused before it costs time and memory."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from sharp_cog.errors import ImageError
from sharp_cog.imaging import limits
from sharp_cog.imaging.images import decode
from tests.fuzz.hostile import STRIP, TILE, tiff, zeros
from tests.fuzz.refusals import refusal
from tests.fuzz.targets_images import (
    FRAMES,
    HEIGHT,
    IMAGE,
    WIDTH,
    avif_seeds,
    chunk,
    gif_seeds,
    heic_seeds,
    jpeg_seeds,
    png,
    read,
    run_length_bmp,
    webp_seeds,
)
from tests.imaging.samples import encoded, heic

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")

JPEG, PROGRESSIVE = jpeg_seeds()[:2]
GIF = gif_seeds()[0]


def refused(content: bytes) -> str:
    return refusal(decode, content, ImageError)


def with_marker(kind: bytes, body: bytes, times: int, whole: bytes = JPEG) -> bytes:
    """Return a JPEG with segments inserted after its first two bytes."""
    return whole[:2] + (b"\xff" + kind + struct.pack(">H", len(body) + 2) + body) * times + whole[2:]


# Sizes.


def sized(whole: bytes, mark: bytes, offset: int, kind: str, width: int, height: int) -> bytes:
    """Return an image with its size overwritten, `offset` bytes after a mark."""
    position = whole.index(mark) + offset
    size = struct.pack(kind, width, height)
    return whole[:position] + size + whole[position + len(size) :]


HUGE = {
    "PNG": png(2**31 - 1, 2**31 - 1, data=b""),
    "JPEG": sized(JPEG, b"\xff\xc0", 5, ">HH", 65500, 65500),
    "progressive JPEG": sized(PROGRESSIVE, b"\xff\xc2", 5, ">HH", 65500, 65500),
    "lossless WebP": sized(webp_seeds()[0], b"VP8X", 12, "<IH", 0xFFFFFF, 0xFFFF),
    "TIFF": tiff(dict.fromkeys(STRIP, 2**31 - 1), b"", 2**31 - 1, 2**31 - 1),
    "BMP": sized(encoded(IMAGE, "BMP"), b"BM", 18, "<ii", 2**31 - 1, 2**31 - 1),
    "GIF": sized(GIF, b"GIF8", 6, "<HH", 65535, 65535),
    "AVIF": sized(avif_seeds()[0], b"ispe", 8, ">II", 2**31 - 1, 2**31 - 1),
    "HEIC": sized(heic_seeds()[0], b"ispe", 8, ">II", 2**31 - 1, 2**31 - 1),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_huge_size_is_refused(name: str) -> None:
    assert refused(HUGE[name])


@pytest.mark.parametrize("size", [(14_500, 14_500), (65_535, 65_535)])
def test_a_gif_whose_frame_is_larger_than_itself_is_refused(size: tuple[int, int]) -> None:
    screen = b"GIF89a" + struct.pack("<HHBBB", 64, 64, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, *size, 0) + b"\x08" + b"\xff" * 6000
    assert "limit" in refused(screen + frame)


@pytest.mark.parametrize("extra", [b"", b"0"])
def test_a_tiff_with_tiles_far_larger_than_itself_is_refused(extra: bytes) -> None:
    data = zeros(1 << 24) + extra
    assert "its tiles have 1073741824 pixels" in refused(tiff(dict.fromkeys(TILE, 1 << 15), data))
    row = struct.pack("<HHI", 322, 4, 1 << 28)  # A tuple of widths in place of one.
    assert refused(tiff(dict.fromkeys(TILE, 1 << 15), data).replace(row[:4] + bytes([1, 0, 0, 0]), row))


@pytest.mark.parametrize("bits", [pytest.param(4, marks=pytest.mark.slow), 8])
def test_a_run_length_encoded_bmp_is_refused_if_it_is_large(bits: int) -> None:
    assert "run-length encoded BMP" in refused(run_length_bmp(10_000, 10_000, bits=bits, data=b"\xff\x11" * 400_000))
    assert "too many parts" in refused(run_length_bmp(WIDTH, HEIGHT, bits=bits, data=b"\0\0" * 300_000))
    skips = read(run_length_bmp(4_000, 4_000, bits=bits, data=b"\0\2\xff\xff" * 16))
    assert (skips.rgb == skips.rgb[0, 0]).all()


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "colour_type", "num_channels"), [(8, 2, 3), (8, 6, 4), (16, 6, 8), (16, 0, 2)])
def test_the_largest_png_without_its_end_is_refused_in_time(bits: int, colour_type: int, num_channels: int) -> None:
    data = zeros(10_000 * (1 + 10_000 * num_channels))[:-2_000]
    assert "truncated" in refused(png(10_000, 10_000, bits=bits, colour_type=colour_type, data=data))


@pytest.mark.slow
def test_the_largest_tiffs_and_webps_are_refused_in_time_if_they_are_broken() -> None:
    strip = dict.fromkeys(STRIP, 10_000)
    assert refused(tiff(strip, zeros(10**8)[:-1_000], 10_000, 10_000))
    floats = strip | {258: 32, 339: 3}
    assert "floats" in refused(tiff(floats, zeros(4 * 10**8), 10_000, 10_000))
    integers = strip | {258: 32, 339: 2}
    assert "from -1 to 0" in refused(tiff(integers, zeros(4 * 10**8 - 4, b"\xff" * 4), 10_000, 10_000))
    webp = bytearray(encoded(Image.new("RGB", (10_000, 10_000)), "WEBP", method=0, quality=1))
    webp[len(webp) // 2 :] = b"\xff" * (len(webp) - len(webp) // 2)
    assert refused(bytes(webp))


# Countless parts.


@pytest.mark.parametrize(
    "kind",
    [
        b"prIv",
        b"IDAT",
        pytest.param(b"tEXt", marks=pytest.mark.slow),
        pytest.param(b"fdAT", marks=pytest.mark.slow),
    ],
)
def test_a_png_of_countless_chunks_is_refused(kind: bytes) -> None:
    whole, part = png(64, 64, data=b""), chunk(kind, b"a\0b" if kind == b"tEXt" else b"")
    assert refused(whole[:33] + part * 300_000 + whole[33:])


def test_png_text_and_profile_bombs_are_not_expanded() -> None:
    bomb = zeros(50 << 20)
    for kind, head in ((b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")):
        content = png(64, 64, chunks=[(kind, head + bomb)])
        assert "Decompressed data too large" in refused(content)
    many = [(b"zTXt", b"%d\0\0" % index + zeros(900_000)) for index in range(80)]
    assert "Too much memory used in text chunks" in refused(png(64, 64, chunks=many))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("fill bytes", b"\xff\xd8" + b"\xff" * 3_000_000),
        ("fill bytes", b"\xff\xd8\xff" + b"\xd8\xff" * 1_000_000),
        ("segments", with_marker(b"\xfe", b"", 100_000)),
        ("segments", with_marker(b"\xd9\xff\xfe", b"", 50_000)),
        ("segments", JPEG[:-2] + b"\xff\xfe\0\2" * 50_000 + JPEG[-2:]),
        ("blocks of tags", with_marker(b"\xe1", b"Exif\0\0ab", 100_000)),
        ("blocks of tags", with_marker(b"\xed", b"Photoshop 3.0\x008BIM" + bytes(6_000), 300)),
        ("blocks of tags", with_marker(b"\xd9\xff\xe1", b"Exif\0\0ab", 300)),
        ("scans", PROGRESSIVE[:-2] + PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2] * 1_000 + b"\xff\xd9"),
    ],
)
def test_a_jpeg_of_countless_parts_is_refused(name: str, content: bytes) -> None:
    assert f"it has more than {limits.MAX_JPEG_FILL_BYTES if name == 'fill bytes' else ''}" in refused(content)
    assert name in refused(content)


@pytest.mark.parametrize("part", [b"\x21\xfe\0", b"\x21\xfe\1a\0", b"\0"])
def test_a_gif_of_countless_parts_is_refused(part: bytes) -> None:
    assert "too many parts" in refused(GIF[:13] + part * 600_000)


def test_files_of_cameras_stay_far_below_the_limits() -> None:
    profile = b"ICC_PROFILE\0" + bytes(60_000)
    many = with_marker(b"\xe2", profile, 255, PROGRESSIVE)
    many = with_marker(b"\xe1", b"http://ns.adobe.com/xmp/extension/\0" + bytes(60_000), 300, many)
    many = with_marker(b"\xed", b"Photoshop 3.0\x008BIM" + bytes(60_000), 20, many)
    motion = np.random.default_rng(0).bytes(5_000_000)  # A video after the image, full of bytes that look like markers.
    np.testing.assert_array_equal(read(many + motion).rgb, read(PROGRESSIVE).rgb)


@pytest.mark.parametrize("format_name", ["GIF", "PNG", "WEBP"])
def test_only_the_first_of_thousands_of_frames_is_decoded(format_name: str) -> None:
    whole = encoded(IMAGE, format_name, save_all=True, append_images=FRAMES, duration=40)
    if format_name == "GIF":
        frame = whole.index(b"!\xf9", whole.index(b"!\xf9") + 1)
        many = whole[:-1] + whole[frame:-1] * 5_000 + b";"
    elif format_name == "PNG":
        many = whole[:-12] + chunk(b"fcTL", bytes(26)) * 5_000 + whole[-12:]
    else:
        frame = whole.rindex(b"ANMF")
        many = whole + whole[frame:] * 5_000
        many = many[:4] + struct.pack("<I", len(many) - 8) + many[8:]
    np.testing.assert_array_equal(read(many).rgb, read(whole).rgb)


def test_a_heic_that_crops_itself_too_small_is_refused() -> None:
    whole = heic(np.zeros((33, 41, 3), np.uint8))  # The file holds even sides, and a box that crops them to odd ones.
    offsets = whole.index(b"clap") + 4 + 16
    beyond = whole[:offsets] + struct.pack(">iIiI", -90, 2, -90, 2) + whole[offsets + 16 :]
    assert read(whole).rgb.shape == (33, 41, 3)
    assert "the least is 32 px a side" in refused(beyond)

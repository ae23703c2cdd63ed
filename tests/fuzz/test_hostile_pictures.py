"""Pictures made to mislead: each is read as what it is, or refused with what is wrong, soon and in little memory."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from sharp_cog import guards
from sharp_cog.errors import ImageError
from sharp_cog.images import decode
from tests.fuzz.refusals import refusal
from tests.fuzz.targets_pictures import (
    EXIF,
    FRAMES,
    HEIGHT,
    PICTURE,
    WIDTH,
    avif_seeds,
    chunk,
    gif_seeds,
    heic_seeds,
    jpeg_seeds,
    png,
    read,
    read_exif,
    read_profile,
    run_length_bmp,
    webp_seeds,
)
from tests.unit.test_images import encoded, linear_profile

JPEG, PROGRESSIVE = jpeg_seeds()[:2]
GIF = gif_seeds()[0]
PIXELS = np.asarray(PICTURE)


def refused(content: bytes) -> str:
    return refusal(decode, content, ImageError)


def zeros(num: int, head: bytes = b"") -> bytes:
    """A zlib stream of a head and of many zeros."""
    deflate = zlib.compressobj(9)
    pieces = [deflate.compress(head), *(deflate.compress(bytes(1 << 20)) for _ in range(num >> 20))]
    return b"".join([*pieces, deflate.compress(bytes(num & (1 << 20) - 1)), deflate.flush()])


def tiff(tags: dict[int, int], data: bytes, width: int = 64, height: int = 48) -> bytes:
    """A TIFF of grey bytes in deflate, put together by hand; `tags` come on top."""
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1} | tags
    offset = 8 + 2 + 12 * len(tags) + 4
    places = {273: offset, 324: offset, 279: len(data), 325: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, places.get(tag, tags[tag])) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


STRIP, TILE = (273, 278, 279), (322, 323, 324, 325)


def with_marker(kind: bytes, body: bytes, times: int, whole: bytes = JPEG) -> bytes:
    """A JPEG with segments right behind its beginning."""
    return whole[:2] + (b"\xff" + kind + struct.pack(">H", len(body) + 2) + body) * times + whole[2:]


# Polyglots: what a file begins with is what it is.


def test_a_zip_behind_a_jpeg_changes_nothing() -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("page.html", "<script>alert(1)</script>")
    np.testing.assert_array_equal(read(JPEG + archive.getvalue()).rgb, read(JPEG).rgb)
    assert "not a picture" in refused(archive.getvalue() + JPEG)


def test_a_png_behind_a_jpeg_changes_nothing() -> None:
    np.testing.assert_array_equal(read(JPEG + png(64, 64)).rgb, read(JPEG).rgb)
    np.testing.assert_array_equal(read(png(64, 64) + JPEG).rgb, read(png(64, 64)).rgb)


def test_a_script_behind_a_gif_changes_nothing() -> None:
    np.testing.assert_array_equal(read(GIF + b"*/=1;alert(1)//").rgb, read(GIF).rgb)


# Sizes.


def sized(whole: bytes, mark: bytes, offset: int, kind: str, width: int, height: int) -> bytes:
    """A picture that says that it has another size, so many bytes behind a mark."""
    position = whole.index(mark) + offset
    size = struct.pack(kind, width, height)
    return whole[:position] + size + whole[position + len(size) :]


HUGE = {
    "PNG": png(2**31 - 1, 2**31 - 1, data=b""),
    "JPEG": sized(JPEG, b"\xff\xc0", 5, ">HH", 65500, 65500),
    "progressive JPEG": sized(PROGRESSIVE, b"\xff\xc2", 5, ">HH", 65500, 65500),
    "lossless WebP": sized(webp_seeds()[0], b"VP8X", 12, "<IH", 0xFFFFFF, 0xFFFF),
    "TIFF": tiff(dict.fromkeys(STRIP, 2**31 - 1), b"", 2**31 - 1, 2**31 - 1),
    "BMP": sized(encoded(PICTURE, "BMP"), b"BM", 18, "<ii", 2**31 - 1, 2**31 - 1),
    "GIF": sized(GIF, b"GIF8", 6, "<HH", 65535, 65535),
    "AVIF": sized(avif_seeds()[0], b"ispe", 8, ">II", 2**31 - 1, 2**31 - 1),
    "HEIC": sized(heic_seeds()[0], b"ispe", 8, ">II", 2**31 - 1, 2**31 - 1),
}


@pytest.mark.parametrize("name", HUGE)
def test_a_size_that_is_huge_is_refused(name: str) -> None:
    assert refused(HUGE[name])


@pytest.mark.parametrize("size", [(13_000, 13_000), (65_535, 65_535)])
def test_a_gif_whose_frame_is_larger_than_itself_is_refused(size: tuple[int, int]) -> None:
    screen = b"GIF89a" + struct.pack("<HHBBB", 64, 64, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, *size, 0) + b"\x08" + b"\xff" * 6000
    assert "limit" in refused(screen + frame)


@pytest.mark.parametrize("extra", [b"", b"0"])
def test_a_tiff_with_tiles_far_larger_than_itself_is_refused(extra: bytes) -> None:
    data = zeros(1 << 24) + extra
    assert "its tiles have 1073741824 pixels" in refused(tiff(dict.fromkeys(TILE, 1 << 15), data))
    row = struct.pack("<HHI", 322, 4, 1 << 28)  # So many widths, where one belongs.
    assert refused(tiff(dict.fromkeys(TILE, 1 << 15), data).replace(row[:4] + bytes([1, 0, 0, 0]), row))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_bmp_of_runs_is_refused_where_it_is_large(bits: int) -> None:
    assert "a BMP of runs" in refused(run_length_bmp(10_000, 10_000, bits=bits, data=b"\xff\x11" * 400_000))
    assert "too many parts" in refused(run_length_bmp(WIDTH, HEIGHT, bits=bits, data=b"\0\0" * 300_000))
    skips = read(run_length_bmp(4_000, 4_000, bits=bits, data=b"\0\2\xff\xff" * 16))
    assert (skips.rgb == skips.rgb[0, 0]).all()


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "colour_type", "num_channels"), [(8, 2, 3), (8, 6, 4), (16, 6, 8), (16, 0, 2)])
def test_the_largest_png_is_refused_in_time_where_its_end_is_missing(
    bits: int, colour_type: int, num_channels: int
) -> None:
    data = zeros(10_000 * (1 + 10_000 * num_channels))[:-2_000]
    assert "truncated" in refused(png(10_000, 10_000, bits=bits, colour_type=colour_type, data=data))


@pytest.mark.slow
def test_the_largest_tiffs_and_webps_are_refused_in_time_where_they_are_broken() -> None:
    strip = dict.fromkeys(STRIP, 10_000)
    assert refused(tiff(strip, zeros(10**8)[:-1_000], 10_000, 10_000))
    floats = strip | {258: 32, 339: 3}
    assert "floats" in refused(tiff(floats, zeros(4 * 10**8), 10_000, 10_000))
    integers = strip | {258: 32, 339: 2}
    assert "from -1 to 0" in refused(tiff(integers, zeros(4 * 10**8 - 4, b"\xff" * 4), 10_000, 10_000))
    webp = bytearray(encoded(Image.new("RGB", (10_000, 10_000)), "WEBP", method=0, quality=1))
    webp[len(webp) // 2 :] = b"\xff" * (len(webp) - len(webp) // 2)
    assert refused(bytes(webp))


# Parts without end.


@pytest.mark.parametrize("kind", [b"prIv", b"tEXt", b"IDAT", b"fdAT"])
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
    assert f"it has more than {guards.MAX_JPEG_FILL_BYTES if name == 'fill bytes' else ''}" in refused(content)
    assert name in refused(content)


@pytest.mark.parametrize("part", [b"\x21\xfe\0", b"\x21\xfe\1a\0", b"\0"])
def test_a_gif_of_countless_parts_is_refused(part: bytes) -> None:
    assert "too many parts" in refused(GIF[:13] + part * 600_000)


def test_what_cameras_write_is_far_below_the_limits() -> None:
    profile = b"ICC_PROFILE\0" + bytes(60_000)
    many = with_marker(b"\xe2", profile, 255, PROGRESSIVE)
    many = with_marker(b"\xe1", b"http://ns.adobe.com/xmp/extension/\0" + bytes(60_000), 300, many)
    many = with_marker(b"\xed", b"Photoshop 3.0\x008BIM" + bytes(60_000), 20, many)
    motion = np.random.default_rng(0).bytes(5_000_000)  # A film behind the picture, full of what looks like markers.
    np.testing.assert_array_equal(read(many + motion).rgb, read(PROGRESSIVE).rgb)


@pytest.mark.parametrize("format_name", ["GIF", "PNG", "WEBP"])
def test_of_thousands_of_frames_only_the_first_is_decoded(format_name: str) -> None:
    whole = encoded(PICTURE, format_name, save_all=True, append_images=FRAMES, duration=40)
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


# EXIF and profiles.


def exif_block(*entries: tuple[int, int, int, int], next_directory: int = 0) -> bytes:
    """A little-endian directory of (tag, type, count, value) at offset 8."""
    rows = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + rows + struct.pack("<I", next_directory)


EXIF_DIRECTORY, GPS_DIRECTORY, ORIENTATION, FOCAL_LENGTH = 0x8769, 0x8825, 0x0112, 0x920A


@pytest.mark.parametrize(
    "block",
    [
        exif_block((EXIF_DIRECTORY, 4, 1, 8)),
        exif_block((EXIF_DIRECTORY, 4, 1, 10), (GPS_DIRECTORY, 4, 1, 8)),
        exif_block((ORIENTATION, 3, 1, 1), next_directory=8),
        exif_block((EXIF_DIRECTORY, 4, 1, 2**32 - 1), next_directory=2**32 - 1),
        exif_block((ORIENTATION, 3, 2**32 - 1, 8), (EXIF_DIRECTORY, 13, 2**31, 8)),
        exif_block((FOCAL_LENGTH, 5, 2**29, 8), (0xA405, 12, 2**28, 0)),
        exif_block(*((tag, 7, 60_000, 8) for tag in range(0x9000, 0x9000 + 5_000))),
        exif_block((ORIENTATION, 2, 4, 0x41414141), (ORIENTATION, 3, 1, 9)),
        EXIF[6:20],
        b"MM\0*" + bytes(8),
        bytes(100_000),
    ],
)
def test_exif_that_loops_or_lies_leaves_the_picture_as_it_is(block: bytes) -> None:
    source = read_exif(block)
    assert source.camera.focal_length_source == "default"
    assert source.turn is None


LINEAR = linear_profile()


@pytest.mark.parametrize(
    "profile",
    [
        b"garbage" * 100,
        bytes(128),
        LINEAR[:200],
        struct.pack(">I", 2**32 - 1) + LINEAR[4:],
        LINEAR[:128] + struct.pack(">I", 2**32 - 1) + LINEAR[132:],
        LINEAR[:128] + struct.pack(">I", 100) + LINEAR[132:],
        LINEAR[:136] + struct.pack(">II", 2**32 - 1, 2**32 - 1) + LINEAR[144:],
        LINEAR.replace(b"curv" + bytes(8), b"curv" + bytes(4) + b"\xff" * 4),
        LINEAR[:36] + b"none" + LINEAR[40:],
    ],
)
def test_profiles_of_garbage_or_with_lengths_that_lie_do_no_harm(profile: bytes) -> None:
    for source, image in zip(
        read_profile(profile), (PICTURE, PICTURE.convert("L"), PICTURE.convert("CMYK")), strict=True
    ):
        assert source.rgb.shape == PIXELS.shape
        if len(profile) < len(LINEAR):
            np.testing.assert_array_equal(source.rgb, image.convert("RGB"))


# Sixteen bits, and other depths.


def test_sixteen_bits_in_either_order_and_with_alpha() -> None:
    values = np.linspace(0, 65535, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH)
    expected = np.rint(values.astype(np.uint16) / 257)
    for order in (b"II*\0", b"MM\0*"):
        kind = "<" if order == b"II*\0" else ">"
        file = io.BytesIO()
        Image.fromarray(values.astype(np.uint16)).save(file, "TIFF")
        content = file.getvalue()
        if kind == ">":
            tags = {256: WIDTH, 257: HEIGHT, 258: 16, 259: 1, 262: 1, 273: 8 + 2 + 12 * 9 + 4, 277: 1, 278: HEIGHT}
            tags[279] = 2 * WIDTH * HEIGHT
            entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags.items())
            content = order + struct.pack(">IH", 8, 9) + entries + bytes(4) + values.astype(">u2").tobytes()
        np.testing.assert_array_equal(read(content).rgb[..., 0], expected)
    assert (read(png(WIDTH, HEIGHT, bits=16, colour_type=4)).rgb == 255).all()  # Black, and wholly transparent.
    assert (read(png(WIDTH, HEIGHT, bits=16, colour_type=6)).rgb == 255).all()
    assert (read(png(WIDTH, HEIGHT, bits=16, colour_type=2)).rgb == 0).all()


@pytest.mark.parametrize(("bits", "colour_type"), [(1, 0), (2, 0), (4, 0), (8, 4), (16, 0), (8, 6)])
@pytest.mark.parametrize("interlaced", [False, True])
def test_all_depths_and_interlacing(bits: int, colour_type: int, interlaced: bool) -> None:
    content = png(WIDTH, HEIGHT, bits=bits, colour_type=colour_type, interlaced=interlaced)
    expected = 255 if colour_type >= 4 else 0
    assert (read(content).rgb == expected).all()


@pytest.mark.parametrize("alphas", [b"", b"\0", b"\x80" * 4])
def test_a_palette_with_too_few_or_too_many_alphas(alphas: bytes) -> None:
    chunks = [(b"PLTE", bytes(range(48))), (b"tRNS", alphas)]
    rgb = read(png(WIDTH, HEIGHT, bits=4, colour_type=3, chunks=chunks)).rgb
    share = alphas[0] / 255 if alphas else 1
    assert np.abs(rgb - (np.array([0, 1, 2]) * share + 255 * (1 - share))).max() <= 1


def test_palettes_and_depths_that_cannot_be_are_refused() -> None:
    too_many = [(b"PLTE", bytes(range(48))), (b"tRNS", b"\xff" * 300)]
    assert "palette" in refused(png(WIDTH, HEIGHT, bits=4, colour_type=3, chunks=too_many))
    assert refused(png(WIDTH, HEIGHT, bits=3, colour_type=0))
    assert refused(png(WIDTH, HEIGHT, bits=16, colour_type=3))

"""Hostile images: each is decoded, or refused with the reason, in little time and memory."""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from sharp_cog.errors import ImageError
from sharp_cog.imaging.images import decode
from tests.fuzz.refusals import refusal
from tests.fuzz.targets_images import (
    EXIF,
    HEIGHT,
    IMAGE,
    WIDTH,
    gif_seeds,
    jpeg_seeds,
    png,
    read,
    read_exif,
    read_profile,
)
from tests.imaging.samples import linear_profile

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

JPEG = jpeg_seeds()[0]
GIF = gif_seeds()[0]
PIXELS = np.asarray(IMAGE)


def refused(content: bytes) -> str:
    return refusal(decode, content, ImageError)


# Polyglots: the first bytes of a file decide its format.


def test_a_zip_behind_a_jpeg_changes_nothing() -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("page.html", "<script>alert(1)</script>")
    np.testing.assert_array_equal(read(JPEG + archive.getvalue()).rgb, read(JPEG).rgb)
    assert "not an image" in refused(archive.getvalue() + JPEG)


def test_a_png_behind_a_jpeg_changes_nothing() -> None:
    np.testing.assert_array_equal(read(JPEG + png(64, 64)).rgb, read(JPEG).rgb)
    np.testing.assert_array_equal(read(png(64, 64) + JPEG).rgb, read(png(64, 64)).rgb)


def test_a_script_behind_a_gif_changes_nothing() -> None:
    np.testing.assert_array_equal(read(GIF + b"*/=1;alert(1)//").rgb, read(GIF).rgb)


# EXIF and profiles.


def exif_block(*entries: tuple[int, int, int, int], next_directory: int = 0) -> bytes:
    """Return a little-endian directory of (tag, type, count, value) at offset 8."""
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
def test_exif_that_loops_or_lies_is_ignored(block: bytes) -> None:
    source = read_exif(block)
    assert source.camera.focal_length_source == "default"
    assert source.orientation is None


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
def test_broken_profiles_and_profiles_with_wrong_lengths_do_no_harm(profile: bytes) -> None:
    for source, image in zip(read_profile(profile), (IMAGE, IMAGE.convert("L"), IMAGE.convert("CMYK")), strict=True):
        assert source.rgb.shape == PIXELS.shape
        if len(profile) < len(LINEAR):
            np.testing.assert_array_equal(source.rgb, image.convert("RGB"))


# Sixteen bits, and other bit depths.


def test_sixteen_bits_are_read_in_either_byte_order_and_with_alpha() -> None:
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
    assert (read(png(WIDTH, HEIGHT, bits=16, colour_type=4)).rgb == 255).all()  # Black, but transparent.
    assert (read(png(WIDTH, HEIGHT, bits=16, colour_type=6)).rgb == 255).all()
    assert (read(png(WIDTH, HEIGHT, bits=16, colour_type=2)).rgb == 0).all()


@pytest.mark.parametrize(("bits", "colour_type"), [(1, 0), (2, 0), (4, 0), (8, 4), (16, 0), (8, 6)])
@pytest.mark.parametrize("interlaced", [False, True])
def test_a_png_may_have_any_bit_depth_and_be_interlaced(bits: int, colour_type: int, interlaced: bool) -> None:
    content = png(WIDTH, HEIGHT, bits=bits, colour_type=colour_type, interlaced=interlaced)
    expected = 255 if colour_type >= 4 else 0
    assert (read(content).rgb == expected).all()


@pytest.mark.parametrize("alphas", [b"", b"\0", b"\x80" * 4])
def test_a_palette_may_have_fewer_alphas_than_colours(alphas: bytes) -> None:
    chunks = [(b"PLTE", bytes(range(48))), (b"tRNS", alphas)]
    rgb = read(png(WIDTH, HEIGHT, bits=4, colour_type=3, chunks=chunks)).rgb
    share = alphas[0] / 255 if alphas else 1
    assert np.abs(rgb - (np.array([0, 1, 2]) * share + 255 * (1 - share))).max() <= 1


def test_impossible_palettes_and_bit_depths_are_refused() -> None:
    too_many = [(b"PLTE", bytes(range(48))), (b"tRNS", b"\xff" * 300)]
    assert "palette" in refused(png(WIDTH, HEIGHT, bits=4, colour_type=3, chunks=too_many))
    assert refused(png(WIDTH, HEIGHT, bits=3, colour_type=0))
    assert refused(png(WIDTH, HEIGHT, bits=16, colour_type=3))

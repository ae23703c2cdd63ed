"""Colours that the file's own numbers describe: wide gamuts, gammas and HDR, against published values."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pillow_heif
import pytest
from numpy.typing import NDArray
from PIL import Image

from sharp_cog.imaging.codings import HLG, PQ, PRIMARIES, SRGB_PRIMARIES, Coding, matrix_to_srgb
from sharp_cog.imaging.images import decode
from tests.imaging.samples import SMOOTH, Pixels, encoded, linear_profile

GREYS: Pixels = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], 48, axis=0).repeat(3, axis=2)


def linear(srgb: NDArray[Any]) -> NDArray[np.float64]:
    values = srgb / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def pq(nits: NDArray[Any]) -> NDArray[np.float64]:
    """The inverse EOTF of ITU-R BT.2100, with the constants as the standard prints them."""
    power = (nits / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def hlg(scene: NDArray[Any]) -> NDArray[np.float64]:
    """The OETF of ITU-R BT.2100."""
    upper = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), upper)


BT2020_FROM_BT709 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
"""Matrix of ITU-R BT.2087."""
P3_FROM_SRGB = np.array([[0.8225, 0.1774, 0.0], [0.0332, 0.9669, 0.0], [0.0171, 0.0724, 0.9108]])


def heic(values: NDArray[Any], primaries: int, transfer: int, matrix: int = 1) -> bytes:
    """Return a HEIC of 10 bits that tells its colours by nclx alone."""
    height, width, _ = values.shape
    sixteen_bits = np.rint(np.clip(values, 0, 1) * 65535).astype("<u2").tobytes()
    image = pillow_heif.from_bytes("RGB;16", (width, height), sixteen_bits)
    file = io.BytesIO()
    numbers = {"color_primaries": primaries, "transfer_characteristics": transfer, "matrix_coefficients": matrix}
    image.save(file, quality=-1, chroma=444, save_nclx_profile=True, **numbers, full_range_flag=1)
    return file.getvalue()


def with_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    """Insert a chunk behind the header of a PNG."""
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return png[:33] + chunk + png[33:]


def difference(content: bytes, expected: Pixels) -> float:
    return float(np.abs(decode(content).rgb.astype(int) - expected).mean())


def test_the_matrices_are_the_published_ones() -> None:
    np.testing.assert_allclose(matrix_to_srgb(PRIMARIES[9]), np.linalg.inv(BT2020_FROM_BT709), atol=2e-3)
    np.testing.assert_allclose(matrix_to_srgb(PRIMARIES[12]), np.linalg.inv(P3_FROM_SRGB), atol=2e-3)
    np.testing.assert_allclose(matrix_to_srgb(SRGB_PRIMARIES), np.eye(3), atol=1e-9)
    for primaries in PRIMARIES.values():  # White stays white, whatever its colour was.
        np.testing.assert_allclose(matrix_to_srgb(primaries).sum(axis=1), 1, atol=1e-9)


def test_display_p3_by_nclx_is_converted() -> None:
    values = linear(SMOOTH) @ P3_FROM_SRGB.T
    coded = np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)
    content = heic(coded, 12, 13)
    assert difference(content, SMOOTH) < 2
    assert np.abs(coded * 255 - SMOOTH).mean() > 4  # The conversion makes a difference.


def test_pq_up_to_the_white_of_sdr_is_that_picture() -> None:
    content = heic(pq(linear(SMOOTH) @ BT2020_FROM_BT709.T * 203), 9, PQ, 9)
    assert difference(content, SMOOTH) < 2


def test_hlg_up_to_the_white_of_sdr_is_that_picture_with_its_highlights_rolled_off() -> None:
    display = linear(GREYS) * 0.203  # White of 203 nits on a display of 1000.
    content = heic(hlg(display ** (1 / 1.2)), 9, HLG, 9)
    assert difference(content, GREYS) < 2


@pytest.mark.parametrize("peak_nits", [400.0, 1000.0, 4000.0, 10_000.0])
def test_hdr_keeps_dark_tones_and_brings_all_into_range(peak_nits: float) -> None:
    nits = np.linspace(0, peak_nits, 2000)
    values = np.repeat(pq(nits)[:, None], 3, axis=1).astype(np.float32)
    mapped = Coding.from_numbers(9, PQ).to_srgb(values, peak=float(values.max())).astype(int)
    assert mapped[-1].tolist() == [255, 255, 255]
    assert (np.diff(mapped[:, 0]) >= 0).all()
    # Above the knee of BT.2390 there is less light, below it as much: 1.5 times the ratio of peaks in PQ, less a half.
    ratio = pq(np.array(203.0)) / pq(np.array(peak_nits))
    below = pq(nits) < (1.5 * ratio - 0.5) * pq(np.array(peak_nits))
    assert below.any()
    expected = 255 * np.interp(nits[below] / 203, linear(np.arange(256)), np.arange(256) / 255)
    assert np.abs(mapped[below, 0] - expected).max() <= 1


def test_neutral_hdr_stays_neutral_and_colours_keep_their_hue() -> None:
    values = pq(np.array([[800.0, 800.0, 800.0], [800.0, 80.0, 80.0]])).astype(np.float32)
    grey, red = Coding.from_numbers(1, PQ).to_srgb(values, peak=float(values.max()))
    assert np.ptp(grey.astype(int)) <= 1
    assert red[0] > 2 * red[1]
    assert abs(int(red[1]) - int(red[2])) <= 1


@pytest.mark.parametrize(("transfer", "power"), [(8, 1.0), (4, 2.2), (5, 2.8)])
def test_plain_powers_are_converted(transfer: int, power: float) -> None:
    content = heic(linear(GREYS) ** (1 / power), 1, transfer)
    assert difference(content, GREYS) < 2.5  # Ten bits of linear light are coarse in the shadows.


@pytest.mark.parametrize(("primaries", "transfer"), [(1, 13), (1, 1), (2, 2), (1, 6), (77, 99)])
def test_what_is_srgb_or_unknown_is_left_alone(primaries: int, transfer: int) -> None:
    assert Coding.from_numbers(primaries, transfer).is_srgb


def test_a_profile_ranks_above_the_numbers_of_a_heic() -> None:
    file = io.BytesIO()
    image = pillow_heif.from_pillow(Image.fromarray(GREYS))
    image.info["icc_profile"] = linear_profile()
    image.save(file, quality=-1, save_nclx_profile=True, color_primaries=12, transfer_characteristics=13)
    expected = 255 * np.interp(GREYS / 255, linear(np.arange(256)), np.arange(256) / 255)
    assert difference(file.getvalue(), expected.astype(np.uint8)) < 3


def test_the_chunk_cicp_of_a_png_ranks_above_all_others() -> None:
    values = np.rint(255 * pq(linear(GREYS) * 203)).astype(np.uint8)
    png = encoded(Image.fromarray(values), "PNG", icc_profile=linear_profile())
    assert difference(with_chunk(png, b"cICP", bytes((1, PQ, 0, 1))), GREYS) < 3
    same = with_chunk(
        with_chunk(encoded(Image.fromarray(GREYS), "PNG"), b"gAMA", struct.pack(">I", 100_000)),
        b"cICP",
        bytes((1, 13, 0, 1)),
    )
    assert difference(same, GREYS) == 0


def chromaticities(values: tuple[float, ...]) -> bytes:
    return b"".join(struct.pack(">I", round(value * 100_000)) for value in values)


def test_the_gamma_of_a_png_is_converted() -> None:
    values = np.rint(255 * linear(GREYS)).astype(np.uint8)
    png = with_chunk(encoded(Image.fromarray(values), "PNG"), b"gAMA", struct.pack(">I", 100_000))
    assert difference(png, GREYS) < 3
    assert difference(with_chunk(png, b"sRGB", b"\0"), values) == 0, "the chunk sRGB ranks above gAMA"


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_the_gamma_of_a_png_counts_in_every_mode(mode: str) -> None:
    image = Image.fromarray(np.rint(255 * linear(GREYS)).astype(np.uint8))
    image = image.quantize(64) if mode == "P" else image.convert(mode)
    assert difference(with_chunk(encoded(image, "PNG"), b"gAMA", struct.pack(">I", 100_000)), GREYS) < 3


@pytest.mark.parametrize("gamma", [45455, 45450, 46000])
def test_the_gamma_that_stands_for_srgb_changes_nothing(gamma: int) -> None:
    png = with_chunk(encoded(Image.fromarray(SMOOTH), "PNG"), b"gAMA", struct.pack(">I", gamma))
    png = with_chunk(png, b"cHRM", chromaticities(SRGB_PRIMARIES))
    assert difference(png, SMOOTH) == 0


def test_the_primaries_of_a_png_are_converted() -> None:
    values = linear(SMOOTH) @ P3_FROM_SRGB.T
    coded = np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)
    png = encoded(Image.fromarray(np.rint(255 * coded).astype(np.uint8)), "PNG")
    assert difference(with_chunk(png, b"cHRM", chromaticities(PRIMARIES[12])), SMOOTH) < 1.5


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (b"gAMA", struct.pack(">I", 0)),
        (b"gAMA", struct.pack(">I", 2**32 - 1)),
        (b"cHRM", bytes(32)),
        (b"cHRM", chromaticities((0.3, 0.3) * 4)),
        (b"cHRM", b"\xff" * 32),
    ],
)
def test_absurd_chunks_change_nothing(kind: bytes, content: bytes) -> None:
    assert difference(with_chunk(encoded(Image.fromarray(SMOOTH), "PNG"), kind, content), SMOOTH) == 0


def test_a_gain_map_of_hdr_leaves_the_base_picture_as_it_is() -> None:
    gain_map = Image.new("L", (16, 12), 200)
    content = encoded(Image.fromarray(SMOOTH), "MPO", save_all=True, append_images=[gain_map])
    np.testing.assert_array_equal(decode(content).rgb, Image.open(io.BytesIO(content)))

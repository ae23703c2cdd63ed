"""Pixels of every colour mode, against Pillow's own conversions and the formulas of colour spaces."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from sharp_cog.errors import ImageError
from sharp_cog.imaging.images import decode
from tests.imaging.samples import (
    NOISE,
    RNG,
    SMOOTH,
    Pixels,
    encoded,
    grey_profile,
    grey_tiff,
    heic,
    ink_profile,
    linear_profile,
)


def test_transparent_heic_is_laid_over_white() -> None:
    rgba = np.dstack([SMOOTH, np.zeros(SMOOTH.shape[:2], np.uint8)])
    assert decode(heic(rgba)).rgb.min() > 250


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
def test_other_modes_are_converted_as_by_pillow(mode: str, format_name: str) -> None:
    image = Image.fromarray(SMOOTH).convert(mode)
    np.testing.assert_array_equal(decode(encoded(image, format_name)).rgb, image.convert("RGB"))


def test_cmyk_jpeg_without_ink_is_white() -> None:
    # Adobe stores inverted values: no ink is 255.
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


def test_twelve_bits_are_scaled_and_inverted_sixteen_bits_are_turned_over() -> None:
    assert (decode(grey_tiff(12, b"\xff" * (64 * 48 * 3 // 2))).rgb == 255).all()
    values = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype("<u2")
    inverted = decode(grey_tiff(16, values.tobytes(), photometric=0)).rgb
    np.testing.assert_array_equal(inverted[..., 0], 255 - np.rint(values / 257))


def test_floats_are_refused_since_their_white_is_unknown() -> None:
    content = encoded(Image.fromarray(np.ones((48, 64), np.float32)), "TIFF")
    with pytest.raises(ImageError, match="8 or 16 bits"):
        decode(content)


def srgb_from_linear(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """Apply the curve of IEC 61966-2-1, and scale to 255."""
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clip(1e-9) ** (1 / 2.4) - 0.055)


def srgb_from_lab(lightness: float, a: float, b: float) -> NDArray[np.float64]:
    """Convert CIE Lab with the D50 white of ICC to sRGB, and scale to 255."""
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
    assert np.abs(expected - RAMP).max() > 10  # The profile makes a difference.
    assert np.abs(decode(content).rgb - expected[..., None]).max() <= 1.5


@pytest.mark.parametrize("format_name", ["TIFF", "JPEG"])
def test_an_ink_profile_is_applied(format_name: str) -> None:
    ink = np.zeros((48, 64, 4), np.uint8)
    ink[:, 32:, 0] = 255
    rgb = decode(encoded(Image.fromarray(ink, "CMYK"), format_name, icc_profile=ink_profile())).rgb
    assert np.abs(rgb[:, :24].astype(float) - 255).max() <= 3
    assert np.abs(rgb[:, 40:] - srgb_from_lab(60, -30, -45)).max() <= 6
    assert np.abs(srgb_from_lab(60, -30, -45) - [0, 255, 255]).max() > 50  # The profile makes a difference.


def test_a_garbage_profile_is_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    rgb = decode(encoded(Image.fromarray(NOISE), "PNG", icc_profile=b"garbage" * 50)).rgb
    np.testing.assert_array_equal(rgb, NOISE)
    assert "profile" in caplog.text


def test_a_profile_for_other_pixels_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    cmyk = Image.fromarray(NOISE).convert("CMYK")
    rgb = decode(encoded(cmyk, "TIFF", icc_profile=linear_profile())).rgb
    np.testing.assert_array_equal(rgb, cmyk.convert("RGB"))
    assert "not for CMYK" in caplog.text

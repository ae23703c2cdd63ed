"""The reader of .ksplat, with files that GaussianSplats3D 0.4.7 made of tests/data/splats/truth.ply."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from sharp_cog import formats
from sharp_cog.errors import SplatError
from sharp_cog.formats.ksplat import HEADER_BYTES, SECTION_BYTES
from tests.formats.samples import TRUTH, sample
from tests.splats import degrees_between, srgb_of

NAMES = ["level0", "level1", "level2", "degree0"]
# Half floats have 11 bits, positions 16 bits for the 5 m of a bucket, and colours 8 bits; the rest is cut off.
SCALE, METRES, COLOR = 2.0**-10, 2.5 / 32767, 1.01 / 255


@pytest.mark.parametrize("name", NAMES)
def test_all_levels_of_compression_are_read(name: str) -> None:
    content = sample(f"{name}.ksplat")
    assert formats.detect(content) == "ksplat"
    gaussians = formats.read(content).gaussians
    order = TRUTH.order_of(gaussians.means.numpy())
    is_exact = name == "level0"
    np.testing.assert_allclose(gaussians.means, TRUTH.means[order], atol=0 if is_exact else METRES)
    np.testing.assert_allclose(gaussians.scales, TRUTH.scales[order], rtol=1e-6 if is_exact else SCALE)
    assert degrees_between(gaussians.quaternions_wxyz.numpy(), TRUTH.wxyz[order]).max() < 0.1
    np.testing.assert_allclose(srgb_of(gaussians.colors_linear), TRUTH.srgb[order].clip(0, 1), atol=COLOR)
    np.testing.assert_allclose(gaussians.opacities, TRUTH.opacities[order], atol=COLOR)
    if name == "degree0":
        assert gaussians.harmonics is None
        return
    assert gaussians.harmonics is not None
    expected = TRUTH.harmonics[order, :8]
    allowed = {"level0": 0, "level1": 2.0**-11, "level2": 1.01 * np.ptp(expected) / 255}[name]
    np.testing.assert_allclose(gaussians.harmonics, expected, atol=allowed)


def changed(name: str, offset: int, value: bytes) -> bytes:
    content = bytearray(sample(f"{name}.ksplat"))
    content[offset : offset + len(value)] = value
    return bytes(content)


def uint32(value: int) -> bytes:
    return struct.pack("<I", value)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (4, uint32(2**32 - 1), "promises 4294967295 sections in 8168 bytes"),
        (HEADER_BYTES, uint32(41), "promises 41 of 40 Gaussians"),
        (HEADER_BYTES + 4, uint32(2**32 - 1), "promises 40 of 4294967295 Gaussians"),
        (HEADER_BYTES + 12, uint32(2**31), "promises 40 of 40 Gaussians up to byte"),
        (HEADER_BYTES + 20, b"\x08", "has 8 bytes for the centre of a bucket"),
        (HEADER_BYTES + 12, uint32(1), "has 1 buckets, too few for its Gaussians"),
        (HEADER_BYTES + 40, b"\x04", "spherical harmonics of degree 4"),
        (HEADER_BYTES + 16, struct.pack("<f", float("nan")), "not finite, in means"),
    ],
)
def test_a_header_that_lies_is_refused(offset: int, value: bytes, message: str) -> None:
    with pytest.raises(SplatError, match=message):
        formats.read(changed("level1", offset, value))


def test_other_versions_and_levels_are_no_ksplat() -> None:
    assert formats.detect(changed("level1", 1, b"\x02")) is None
    assert formats.detect(changed("level1", 20, b"\x03")) is None


def test_a_file_without_sections_is_an_empty_splat() -> None:
    assert len(formats.read(changed("level0", 4, uint32(0))).gaussians) == 0


@pytest.mark.parametrize("name", NAMES)
def test_truncated_files_are_refused(name: str) -> None:
    content = sample(f"{name}.ksplat")
    for length in range(HEADER_BYTES, len(content), 97):
        with pytest.raises(SplatError, match="truncated"):
            formats.read(content[:length])


def test_several_sections_become_one_splat() -> None:
    """Two sections with the same records: the second header and the second content follow the first ones."""
    content = sample("level0.ksplat")
    start = HEADER_BYTES + SECTION_BYTES
    header, section, body = content[:HEADER_BYTES], content[HEADER_BYTES:start], content[start:]
    twice = header[:4] + uint32(2) + header[8:] + section * 2 + body * 2
    once, both = formats.read(content).gaussians, formats.read(twice).gaussians
    assert len(both) == 2 * len(once)
    np.testing.assert_array_equal(both.means[len(once) :], once.means)

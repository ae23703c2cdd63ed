"""The parts of a .spz that test_registry.py does not see: limits, older versions, and lies about sizes."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from sharp_cog.errors import NotInstalledError, OutputError, SplatError
from sharp_cog.formats.spz import MAGIC, read_spz, require_zstandard
from tests.formats.cases import decode, written
from tests.splats import degrees_between, random_gaussians


def test_positions_beyond_24_bits_are_refused() -> None:
    gaussians = random_gaussians(5)
    gaussians.means[2, 0] = 9e6
    with pytest.raises(OutputError, match=r"9000000 m from the origin.*8388607"):
        written("spz", gaussians)


def test_far_positions_take_bits_from_the_fraction() -> None:
    gaussians = random_gaussians(5)
    gaussians.means[2, 0] = 5000.0
    assert gzip.decompress(written("spz", gaussians))[13] == 10
    np.testing.assert_allclose(decode("spz", written("spz", gaussians)).means, gaussians.means, atol=0.5 / 1024)


def test_a_file_of_many_blocks_is_one_gzip_stream() -> None:
    """Blocks of 1 MB are compressed in parallel."""
    gaussians = random_gaussians(120_000)
    content = written("spz", gaussians)
    assert len(gzip.decompress(content)) == 16 + 20 * 120_000
    np.testing.assert_allclose(read_spz(content).gaussians.means[:, 0], gaussians.means[:, 0], atol=0.5 / 4096)


@pytest.mark.parametrize(
    ("version", "positions"),
    [
        (1, struct.pack("<3e", 1.5, -2.0, 0.25)),
        (2, b"".join(int(value * 4096).to_bytes(3, "little", signed=True) for value in (1.5, -2.0, 0.25))),
    ],
)
def test_older_versions_are_read(version: int, positions: bytes) -> None:
    """Version 1 has half floats for positions; 1 and 2 have x y z of the quaternion in bytes."""
    # Opacity 1/2, mid grey, scales of 1 m, a quarter turn about x.
    quarter = round((np.sin(np.pi / 4) + 1) * 127.5)
    body = positions + bytes([128, 128, 128, 128, 160, 160, 160, quarter, 127, 127])
    splat = read_spz(gzip.compress(struct.pack("<IIIBBBB", MAGIC, version, 1, 0, 12, 0, 0) + body))
    np.testing.assert_allclose(splat.gaussians.means, [[1.5, -2.0, 0.25]])
    np.testing.assert_allclose(splat.gaussians.scales, [[1.0, 1.0, 1.0]], rtol=1e-6)
    quarter_turn = np.array([[np.cos(np.pi / 4), np.sin(np.pi / 4), 0, 0]])
    assert degrees_between(splat.gaussians.quaternions_wxyz.numpy(), quarter_turn).max() < 1
    assert splat.gaussians.opacities.item() == pytest.approx(128 / 255)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_higher_spherical_harmonics_are_ignored(degree: int) -> None:
    plain = gzip.decompress(written("spz", random_gaussians(7)))
    harmonics = bytes(7 * 3 * ((degree + 1) ** 2 - 1))
    splat = read_spz(gzip.compress(plain[:12] + bytes([degree]) + plain[13:] + harmonics))
    np.testing.assert_array_equal(splat.gaussians.means, read_spz(gzip.compress(plain)).gaussians.means)


@pytest.mark.parametrize(
    ("version", "count", "degree", "message"),
    [
        (3, 0xFFFFFFFF, 0, "promises 4294967295 Gaussians"),
        (7, 0, 0, "has version 7: 1 to 4 can be read"),
        (3, 1, 5, "spherical harmonics of degree 5, the limit is 4"),
    ],
)
def test_impossible_headers_are_refused(version: int, count: int, degree: int, message: str) -> None:
    header = struct.pack("<IIIBBBB", MAGIC, version, count, degree, 12, 0, 0)
    with pytest.raises(SplatError, match=message):
        read_spz(gzip.compress(header + bytes(1 << 20)))


def test_other_gzip_files_are_refused() -> None:
    with pytest.raises(SplatError, match=r"not a \.spz inside"):
        read_spz(gzip.compress(b"something else, long enough"))


def test_version_4_needs_zstandard(monkeypatch: pytest.MonkeyPatch) -> None:
    require_zstandard()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotInstalledError, match=r"pip install -e '\.\[spz\]', or choose version 3"):
        require_zstandard()

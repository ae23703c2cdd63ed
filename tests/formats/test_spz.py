"""The parts of a .spz that test_registry.py does not see: limits, older versions, and lies about sizes."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest

from sharp_cog import formats
from sharp_cog.errors import NotInstalledError, OutputError, SplatError
from sharp_cog.formats.scene import PHOTOGRAPH_FRAME
from sharp_cog.formats.spz import AXES, MAGIC, read_spz, require_zstandard
from tests.formats.cases import as_opencv, assert_same, decode, decode_as_stored, written
from tests.splats import degrees_between, gaussians_in_front, random_gaussians, with_harmonics


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
@pytest.mark.parametrize("case", ["spz2", "spz", "spz4"])
def test_harmonics_are_bytes_around_128(degree: int, case: str) -> None:
    """A unit has 128 steps; 5 bits are kept in degree 1, and 4 above."""
    gaussians = with_harmonics(random_gaussians(7), degree)
    content = written(case, gaussians, axes="opencv")
    splat = read_spz(content)
    num_bands = min((degree + 1) ** 2 - 1, 15 if case == "spz2" else 24)  # Version 2 ends at degree 3.
    assert splat.gaussians.harmonics is not None
    assert gaussians.harmonics is not None
    assert splat.gaussians.harmonics.shape == (7, num_bands, 3)
    error = (splat.gaussians.harmonics - gaussians.harmonics[:, :num_bands]).abs()
    assert error[:, :3].max() <= 4.5 / 128
    assert error.max() <= 8.5 / 128
    if case != "spz4":
        plain = gzip.decompress(content)
        end = len(plain) - (0 if case == "spz2" else 12)  # The extension that names the axes.
        codes = np.frombuffer(plain[end - 7 * num_bands * 3 : end], np.uint8)
        np.testing.assert_allclose(
            splat.gaussians.harmonics, codes.reshape(7, num_bands, 3) / 128 - 1, rtol=0, atol=1e-6
        )
        assert set(np.unique(codes.reshape(7, -1, 3)[:, 3:] % 16)) <= {0, 15}  # 15 is 255, which 256 becomes.


def test_version_2_is_what_older_readers_expect() -> None:
    gaussians = random_gaussians(257)
    content = written("spz2", gaussians)
    assert gzip.decompress(content)[:16] == struct.pack("<IIIBBBB", MAGIC, 2, 257, 0, 12, 0, 0)
    assert_same("spz2", as_opencv("spz2", decode_as_stored("spz2", content)), gaussians)
    back = formats.read(content).gaussians
    assert degrees_between(back.quaternions_wxyz.numpy(), gaussians.quaternions_wxyz.numpy()).max() < 11
    assert np.median(degrees_between(back.quaternions_wxyz.numpy(), gaussians.quaternions_wxyz.numpy())) < 1


def test_version_2_ends_with_the_gaussians_in_any_axes() -> None:
    """GaussianSplats3D refuses a file with more bytes."""
    plain = gzip.decompress(written("spz2", random_gaussians(5), axes="opencv"))
    assert len(plain) == 16 + 5 * 19
    assert plain[14] == 0


@pytest.mark.parametrize("case", ["spz", "spz4"])
def test_axes_other_than_the_usual_ones_are_named_in_the_file(case: str) -> None:
    gaussians = gaussians_in_front(20)
    content = written(case, gaussians, axes="opencv")
    extension = struct.pack("<III", 0xADBE0003, 4, 6)
    plain = content if case == "spz4" else gzip.decompress(content)
    assert plain[14] == 2
    assert plain[32:44] == extension if case == "spz4" else plain[-12:] == extension
    assert read_spz(content).frame == PHOTOGRAPH_FRAME
    np.testing.assert_allclose(formats.read(content).gaussians.means, gaussians.means, atol=0.6 / 4096)
    default = written(case, gaussians)
    assert (default if case == "spz4" else gzip.decompress(default))[14] == 0
    assert formats.read(content).notes == ()


@pytest.mark.parametrize("number", range(17))
def test_all_axes_are_understood(number: int) -> None:
    """Letters are the directions of x, y and z: the point (1, 2, 3) in RFU is 1 right, 2 to the front, 3 up."""
    letters = (["RUB", *AXES])[number]
    plain = bytearray(gzip.decompress(written("spz", with_harmonics(random_gaussians(1), 1), axes="opencv")))
    plain[16:25] = b"".join(int(value * 4096).to_bytes(3, "little", signed=True) for value in (1, 2, 3))
    plain[-4:] = struct.pack("<I", number)
    seen = formats.read(gzip.compress(bytes(plain))).gaussians
    directions = {"R": (1, 0, 0), "L": (-1, 0, 0), "D": (0, 1, 0), "U": (0, -1, 0), "F": (0, 0, 1), "B": (0, 0, -1)}
    matrix = np.array([directions[letter] for letter in letters]).T
    np.testing.assert_allclose(seen.means, [matrix @ [1, 2, 3]])
    # Degree 1 is -y, z, -x: a vector, which turns with the axes.
    assert seen.harmonics is not None
    before = read_spz(gzip.compress(bytes(plain[:-4]) + struct.pack("<I", 6))).gaussians.harmonics
    assert before is not None
    vector = np.stack([-before[0, 2], -before[0, 0], before[0, 1]])
    turned = np.stack([-seen.harmonics[0, 2], -seen.harmonics[0, 0], seen.harmonics[0, 1]])
    np.testing.assert_allclose(turned, matrix @ vector, atol=1e-6)


def test_extensions_that_are_broken_or_unknown_are_told() -> None:
    plain = gzip.decompress(written("spz", gaussians_in_front(2), axes="opencv"))
    for message, tail in {
        "axes of the number 17": struct.pack("<III", 0xADBE0003, 4, 17),
        "is truncated": struct.pack("<II", 0xADBE0003, 5) + b"1234",
    }.items():
        with pytest.raises(SplatError, match=message):
            read_spz(gzip.compress(plain[:-12] + tail))
    splat = read_spz(gzip.compress(plain + struct.pack("<II", 0xADBE0002, 3) + b"abc"))
    assert splat.notes == ("the .spz has an extension that is unknown here (0xadbe0002): it is left out",)
    assert splat.frame == PHOTOGRAPH_FRAME


def test_a_file_without_compression_is_read() -> None:
    content = written("spz", random_gaussians(5))
    back = read_spz(gzip.decompress(content)).gaussians
    np.testing.assert_array_equal(back.means, read_spz(content).gaussians.means)
    with pytest.raises(SplatError, match="has 99 bytes of 100: it is truncated"):
        read_spz(gzip.decompress(content)[:-1])


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

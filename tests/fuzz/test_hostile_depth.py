"""Hostile depth maps: each is read, or refused with the reason, in little time and memory."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import OpenEXR
import pytest
from numpy.typing import NDArray

from sharp_cog.depth import files as depth_files
from sharp_cog.errors import DepthError
from tests.depth.samples import exr, npy, pfm
from tests.fuzz.hostile import STRIP, TILE, tiff, zeros
from tests.fuzz.refusals import refusal
from tests.fuzz.targets_depth import DEPTH, HEIGHT, WIDTH, exr_seeds, read
from tests.fuzz.targets_images import chunk, png


def refused(content: bytes) -> str:
    return refusal(depth_files.read, content, DepthError)


def headed(header: str, body: bytes = b"", version: int = 1) -> bytes:
    """Return a .npy with this header, true or not."""
    size = struct.pack("<H" if version == 1 else "<I", len(header) + 1)
    return b"\x93NUMPY" + bytes([version, 0]) + size + header.encode("latin-1") + b"\n" + body


def described(dtype: str, shape: str, *, order: bool = False) -> str:
    return f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}"


class Trap:
    """Object that creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]  # Called with the path.


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    pickle.loads(trap)
    assert (tmp_path / "sprung").exists()  # The trap works.
    (tmp_path / "sprung").unlink()
    objects = np.empty((8, 12), dtype=object)
    objects.fill(Trap(tmp_path / "sprung"))
    file = io.BytesIO()
    np.save(file, objects, allow_pickle=True)
    assert "holds object" in refused(file.getvalue())
    assert "holds object" in refused(headed(described("'|O'", "(8, 12)"), trap))
    assert "not a depth map" in refused(trap)
    archive = io.BytesIO()
    np.savez(archive, a=objects)
    assert "holds object" in refused(archive.getvalue())
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "shape",
    [
        *("(1000000000, 1000000000)", "(-1, -96)", "(-8, 12)", "(0, 12)", "(8, 0)", "()", "(96,)", "(8, 12, 2)"),
        *("(8.0, 12)", "('8', 12)", "(True, 96)", "8", "None", "(8, (12,))", "(" * 2000, "(8, 12" + ", 2" * 3000 + ")"),
        f"({10**400}, {10**400})",
        f"({10**4000}, {10**4000})",
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_shapes_that_lie_are_refused(shape: str, version: int) -> None:
    assert ".npy" in refused(headed(described("'<f4'", shape), DEPTH.tobytes(), version))


@pytest.mark.parametrize(
    "dtype",
    [
        *(
            "'|O'",
            "'<U4'",
            "'|S4'",
            "'<M8[s]'",
            "'<c8'",
            "'|b1'",
            "'|V4'",
            "'<f0'",
            "'<f3'",
            "'float'",
            "''",
            "None",
            "[]",
        ),
        *("[('x', '<f4')]", "[('depth_m', '<f4'), ('y', '<f4')]", "[('depth_m', [('z', '<f4')])]", "('<f4', (2,))"),
        *("[('depth_m', '|O')]", "[('', '')]", "[('depth_m', '<f4', (1000000000,))]", "__import__('os')", "[" * 500),
    ],
)
def test_types_other_than_numbers_are_refused(dtype: str) -> None:
    assert ".npy" in refused(headed(described(dtype, "(8, 12)"), DEPTH.tobytes()))


@pytest.mark.parametrize(
    "content",
    [
        headed("", DEPTH.tobytes()),
        headed("{}", DEPTH.tobytes()),
        headed(described("'<f4'", "(8, 12)").replace("False", "'no'"), DEPTH.tobytes()),
        headed("{'descr': '<f4', 'fortran_order': False, 'shape': (8, 12), 'more': 1}", DEPTH.tobytes()),
        headed("\xff\0" * 100, DEPTH.tobytes()),
        b"\x93NUMPY\x01\0\xff\xff" + b"{" * 65535,
        b"\x93NUMPY\x02\0\xff\xff\xff\xff" + b" " * 3_000_000,
        b"\x93NUMPY\x63\0" + npy(DEPTH)[8:],
        npy(DEPTH)[:-1],
        npy(DEPTH) + b"\0",
        npy(DEPTH)[:10],
    ],
)
def test_broken_headers_are_refused(content: bytes) -> None:
    assert ".npy" in refused(content)


def test_every_layout_of_numbers_is_read_as_numpy_reads_it() -> None:
    for array in (
        DEPTH[::-1],
        DEPTH[:, ::-1],
        DEPTH.T,
        np.asfortranarray(DEPTH),
        DEPTH[::2, ::3],
        DEPTH[None, ..., None],
    ):
        for kind in ("<f2", ">f4", "<f8", ">u2", "<i8", "|u1", "<g"):
            typed = (array * 9).astype(kind)
            expected = np.load(io.BytesIO(npy(typed))).astype(np.float32)
            np.testing.assert_array_equal(
                depth_files.read(npy(typed)).values, expected.reshape(expected.squeeze().shape)
            )


@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf, 0.0, -1.0])
@pytest.mark.parametrize("kind", ["<f4", "<f8"])
def test_maps_without_a_known_pixel_are_refused(fill: float, kind: str) -> None:
    assert refusal(read, npy(np.full((HEIGHT, WIDTH), fill, dtype=kind)), DepthError)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, -1e300, 5e-324])
def test_one_odd_value_does_not_change_the_others(value: float) -> None:
    values = DEPTH.astype(np.float64)
    values[3, 4] = value
    known = np.arange(DEPTH.size).reshape(DEPTH.shape) != 3 * WIDTH + 4
    np.testing.assert_allclose(read(npy(values)).depth_m[known], DEPTH[known], rtol=1e-6)


def zipped(content: list[bytes], name: str = "a.npy", compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive, archive.open(name, "w") as member:
        for piece in content:
            member.write(piece)
    return file.getvalue()


BOMB_HEADER = headed(described("'<f8'", "(10000, 10000)"))


def test_npz_bombs_are_not_expanded() -> None:
    megabytes = [bytes(1 << 20)] * 30
    assert "which is not an array" in refused(zipped(megabytes, "n" * 60_000))
    assert "header promises 800000000 bytes" in refused(zipped([BOMB_HEADER, *megabytes]))
    assert "header is broken" in refused(zipped([b"\x93NUMPY\x02\0\xff\xff\xff\x01", *megabytes]))
    nested = zipped([zipped(megabytes)])
    assert "which is not an array" in refused(nested)


def test_an_npz_with_a_wrong_directory_is_read_or_refused() -> None:
    whole = zipped([npy(DEPTH)])
    place = whole.rindex(b"PK\1\2")
    for offset in (8, 10, 16, 20, 24, 28, 30, 32, 42):
        for value in (b"\1\0", b"\xff\xff"):
            broken = whole[: place + offset] + value + whole[place + offset + 2 :]
            try:
                values = depth_files.read(broken).values
            except DepthError:
                assert ".np" in refused(broken)
            else:
                np.testing.assert_array_equal(values, DEPTH)
    encrypted = whole[: place + 8] + b"\1" + whole[place + 9 :]
    assert "npz is broken" in refused(encrypted[:6] + b"\1" + encrypted[7:])


@pytest.mark.slow
def test_the_largest_npz_with_a_wrong_checksum_is_refused_in_time() -> None:
    size = 800_000_000
    whole = zipped([BOMB_HEADER, *[bytes(1 << 20)] * (size >> 20), bytes(size & (1 << 20) - 1)])
    place = whole.rindex(b"PK\1\2") + 16
    assert "npz is broken" in refused(whole[:place] + bytes(4) + whole[place + 4 :])


@pytest.mark.parametrize(
    "header",
    [
        *(
            "Pf\n1000000000 1000000000\n-1\n",
            "Pf\n-12 -8\n-1\n",
            "Pf\n12 8\n0\n",
            "Pf\n12 8\nnan\n",
            "Pf\n12 8\n1e999\n",
        ),
        *("Pf\n1_2 8\n-1\n", "Pf\n+12 8\n-1\n", "Pf\n12.0 8\n-1\n", "Pf 12 8", "Pf\n" + "9" * 5000 + " 8\n-1\n"),
        *("PF\n12 8\n-1\n", "Pf\n\n\n\n", "Pfx\n12 8\n-1\n", "Pf" + " " * 300 + "12 8 -1\n"),
    ],
)
def test_odd_pfm_headers_are_read_or_refused(header: str) -> None:
    content = header.encode() + DEPTH[::-1].tobytes()
    try:
        values = depth_files.read(content).values
    except DepthError:
        assert "pfm" in refused(content)
    else:
        assert values.shape == (HEIGHT, WIDTH)
        np.testing.assert_array_equal(values, DEPTH if "-1" in header else DEPTH.byteswap())


def exr_with(**header: object) -> bytes:
    """Return an .exr with attributes of its header overwritten by the same number of bytes."""
    content = exr_seeds()[0]
    for name, value in header.items():
        assert isinstance(value, bytes)
        place = content.index(name.encode() + b"\0")
        kind_end = content.index(b"\0", place + len(name) + 1) + 1
        size = int.from_bytes(content[kind_end : kind_end + 4], "little")
        content = content[: kind_end + 4] + value[:size].ljust(size, b"\0") + content[kind_end + 4 + size :]
    return content


@pytest.mark.parametrize("corner", [(10**9, 10**9), (9_999, 9_999), (20_000, 4_999), (-1, -1), (2**31 - 1, 2**31 - 1)])
def test_an_exr_with_a_huge_window_is_refused(corner: tuple[int, int]) -> None:
    assert refused(exr_with(dataWindow=struct.pack("<4i", 0, 0, *corner)))
    assert refused(exr_with(dataWindow=struct.pack("<4i", -(2**31), -(2**31), *corner)))


@pytest.mark.parametrize("name", ["channels", "compression", "lineOrder", "displayWindow", "pixelAspectRatio"])
@pytest.mark.parametrize("value", [b"", b"\xff" * 64, b"\x01" * 64])
def test_an_exr_with_a_broken_header_is_read_or_refused(name: str, value: bytes) -> None:
    content = exr_with(**{name: value})
    try:
        values = depth_files.read(content).values
    except DepthError:
        assert "exr" in refused(content)
    else:
        np.testing.assert_array_equal(values, DEPTH)


def test_an_exr_of_many_channels_or_parts_is_refused_before_its_pixels_are_read(tmp_path: Path) -> None:
    many: dict[str, NDArray[np.float32]] = {f"{'c' * 200}{index}": DEPTH for index in range(50)}
    assert "give one of depth alone" in refused(exr(tmp_path, **many))
    parts = [OpenEXR.Part({}, {"Z": DEPTH}, name) for name in ("first", "second")]
    with OpenEXR.File(parts) as file:
        file.write(str(tmp_path / "parts.exr"))
    assert "the channels Z, Z" in refused((tmp_path / "parts.exr").read_bytes())


def test_errors_of_an_exr_do_not_name_a_temporary_file() -> None:
    content = exr_seeds()[0]
    for length in range(4, len(content), 97):
        assert "/" not in refused(content[:length])


def test_countless_chunks_and_huge_tiles_are_refused() -> None:
    assert "its tiles have" in refused(tiff(dict.fromkeys(TILE, 1 << 15) | {258: 32, 339: 3}, zeros(1 << 22)))
    whole = png(64, 64, bits=16, colour_type=0)
    assert "too many parts" in refused(whole[:33] + chunk(b"prIv", b"") * 400_000 + whole[33:])


@pytest.mark.slow
def test_the_largest_maps_are_refused_in_time_if_they_are_broken() -> None:
    floats = dict.fromkeys(STRIP, 10_000) | {258: 32, 339: 3}
    assert "broken" in refused(tiff(floats, zeros(4 * 10**8)[:-1_000], 10_000, 10_000))
    assert "broken" in refused(png(10_000, 10_000, bits=16, colour_type=0, data=zeros(10_000 * 20_001)[:-1_000]))
    assert "promises" in refused(pfm(np.zeros((10_000, 10_000), np.float32))[:-1])

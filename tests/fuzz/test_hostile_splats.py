"""Malicious splats: each one is read correctly, or refused with the fault, quickly and in little memory."""

from __future__ import annotations

import gzip
import io
import struct
import zlib

import numpy as np
import pytest
import torch
import zstandard

from sharp_cog import formats
from sharp_cog.errors import SplatError
from tests.fuzz.refusals import refusal
from tests.fuzz.targets_splats import by_plyfile, read, written

PLY, ASCII = written("ply", 5), by_plyfile(text=True, byte_order="<")
HEADER, BODY = PLY.split(b"end_header\n", 1)
ASCII_HEADER, LINES = ASCII.split(b"end_header\n", 1)
MEANS = read(PLY).gaussians.means


def refused(content: bytes) -> str:
    return refusal(formats.read, content, SplatError)


def ply_of(vertices: np.ndarray, order: str = "little") -> bytes:
    """Return a .ply of these records."""
    names = {"f4": "float", "f8": "double", "i2": "short", "u1": "uchar"}
    properties = [f"property {names[vertices.dtype[name].str[1:]]} {name}" for name in vertices.dtype.names or ()]
    lines = ["ply", f"format binary_{order}_endian 1.0", f"element vertex {len(vertices)}", *properties, "end_header"]
    return "\n".join([*lines, ""]).encode() + vertices.tobytes()


@pytest.mark.parametrize("count", [6, 10**6, 10**12, 10**18 - 1])
@pytest.mark.parametrize("whole", [PLY, ASCII, written("compressed_ply", 5)])
def test_a_false_count_is_refused(whole: bytes, count: int) -> None:
    message = refused(whole.replace(b"element vertex 5", b"element vertex %d" % count))
    assert "promises" in message or "too few lines" in message


def test_an_element_with_the_bytes_of_the_vertices_is_refused() -> None:
    assert "promises 2000000000 of 'face'" in refused(
        HEADER + b"element face 2000000000\nproperty int a\nend_header\n" + BODY
    )
    assert "has the element 'vertex' twice" in refused(
        HEADER + b"element vertex 0\nproperty float x\nend_header\n" + BODY
    )


@pytest.mark.parametrize("name", ["x", "scale_2", "rot_0", "f_dc_1", "opacity"])
def test_a_missing_or_repeated_property_is_named(name: str) -> None:
    line = f"property float {name}\n".encode()
    assert name in refused(PLY.replace(line, line.replace(name.encode(), b"other")))
    assert name in refused(PLY.replace(line, line * 2))


def test_properties_of_other_types_and_in_another_order_are_read() -> None:
    source = np.frombuffer(
        BODY, [(line.split()[2], "<f4") for line in HEADER.decode().split("\n") if "property" in line]
    )
    names = list(reversed(source.dtype.names or ()))
    kinds = dict.fromkeys(names, ">f8") | {"opacity": ">i2"}
    vertices = np.zeros(len(source), [(name, kinds[name]) for name in names])
    for name in names:
        vertices[name] = source[name]
    splat = read(ply_of(vertices, "big"))
    torch.testing.assert_close(splat.gaussians.means, MEANS)
    expected = 1 / (1 + np.exp(-np.trunc(source["opacity"].astype(float))))
    np.testing.assert_allclose(splat.gaussians.opacities, expected, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("name", ["x", "scale_0", "rot_1", "f_dc_0", "opacity"])
def test_values_that_are_not_finite_are_refused_or_saturate(name: str, value: float) -> None:
    vertices = np.zeros(3, [(name, "<f8") for name in PROPERTIES])
    vertices["rot_0"] = 1
    vertices[name][1] = value
    content = ply_of(vertices)
    if name == "scale_0" and value == -np.inf:
        assert read(content).gaussians.scales[1, 0] == 0
    elif name == "opacity" and not np.isnan(value):
        assert read(content).gaussians.opacities[0] == 0.5
    else:
        assert "not finite" in refused(content)


PROPERTIES = [line.split()[2] for line in HEADER.decode().split("\n") if line.startswith("property")]


def test_lists_are_refused() -> None:
    listed = HEADER.replace(b"property float x", b"property list uchar int x")
    assert "cannot be read: 'property list" in refused(listed + b"end_header\n" + BODY)


def test_endless_headers_are_refused() -> None:
    assert "does not start with 'ply' and end" in refused(b"ply\n" + b"comment endless\n" * 1_000_000)
    assert "does not start with 'ply' and end" in refused(b"ply\n" + b"\n" * 30_000_000)
    assert "cannot be read" in refused(b"ply\nformat ascii 1.0\n" + b"x" * 60_000 + b"\nend_header\n")


def test_long_and_unprintable_names_are_shortened_in_messages() -> None:
    name = b"v\xe9\x07" * 15_000
    for line in (b"element %s 9\nproperty float x\n", b"element a 9\nproperty float %s\nproperty float %s\n"):
        assert (
            len(
                refused(
                    b"ply\nformat binary_little_endian 1.0\n" + line.replace(b"%s", name[:20_000]) + b"end_header\n"
                )
            )
            < 500
        )
    assert len(refused(b"ply\nformat %s 1.0\nend_header\n" % name)) < 500


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
def test_ascii_is_read_with_either_line_end(line_end: bytes) -> None:
    torch.testing.assert_close(read(ASCII.replace(b"\n", line_end)).gaussians.means, MEANS)


@pytest.mark.parametrize(
    "lines",
    [
        LINES.replace(b"\n", b" 1\n", 1),
        LINES.replace(b" ", b"\n", 1),
        LINES.split(b"\n", 1)[1],
        b"\n" + LINES,
        LINES.replace(b" ", b" word ", 1),
        LINES[: len(LINES) // 2],
        b"",
        b"\0" * len(LINES),
        b"0 " * 5_000_000,
        b"\n" * 30_000_000,
    ],
)
def test_ascii_with_too_much_or_too_little_is_refused(lines: bytes) -> None:
    assert "'vertex'" in refused(ASCII_HEADER + b"end_header\n" + lines)


def test_ascii_that_is_not_a_number_is_refused() -> None:
    assert "not finite" in refused(ASCII_HEADER + b"end_header\n" + b"nan" + LINES[LINES.index(b" ") :])


def test_many_empty_elements_take_no_time() -> None:
    elements = b"".join(b"element e%d 0\nproperty float x\n" % index for index in range(2_000))
    content = ASCII_HEADER.replace(b"element vertex", elements + b"element vertex") + b"end_header\n" + LINES
    torch.testing.assert_close(read(content).gaussians.means, MEANS)
    assert "'vertex'" in refused(content.replace(LINES, b"\n" * 10_000_000))


def test_wide_records_are_refused_before_memory_is_allocated() -> None:
    wide = b"".join(b"property double p%d\n" % index for index in range(2_500))
    assert "promises 900000" in refused(
        ASCII_HEADER.replace(b"vertex 5", b"vertex 900000") + wide + b"end_header\n" + b"\n" * 1_000_000
    )


def test_an_impossible_camera_is_refused() -> None:
    assert "the camera" in refused(PLY.replace(b"image_size 1200 800", b"image_size 1200 -1"))
    assert "the camera" in refused(PLY.replace(b"image_size 1200 800", b"image_size nan inf"))
    for position in (b"nan 0 0", b"1e39 0 0", b"0 0", b"a b c"):
        assert "camera" in refused(
            PLY.replace(b"comment color_space", b"comment camera_position %s\ncomment color_space" % position)
        )


def spz_header(version: int, count: int, *, degree: int = 0, fraction_bits: int = 12) -> bytes:
    return struct.pack("<4sIIBBBB", b"NGSP", version, count, degree, fraction_bits, 0, 0)


def gzipped(head: bytes, num_zeros: int) -> bytes:
    """Return a gzip stream of a head and zeros."""
    deflate = zlib.compressobj(9, wbits=31)
    return b"".join(
        [deflate.compress(head), *(deflate.compress(bytes(1 << 20)) for _ in range(num_zeros >> 20)), deflate.flush()]
    )


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("count", [2, 10**6, 10**7 + 1, 2**32 - 1])
def test_an_spz_with_a_false_count_is_refused(version: int, count: int) -> None:
    assert ".spz" in refused(gzip.compress(spz_header(version, count) + bytes(19)))


def test_an_spz_with_more_gaussians_than_the_limit_is_refused() -> None:
    assert "promises 10000001 Gaussians, the limit is 10000000" in refused(gzipped(spz_header(3, 10**7 + 1), 0))
    header = struct.pack("<4sIIBBBBI12x", b"NGSP", 4, 10**8, 0, 12, 0, 5, 32)
    assert "the limit is 10000000" in refused(header + bytes(80))


def test_a_decompression_bomb_is_not_expanded_beyond_its_count() -> None:
    """Zeros compress a thousandfold: one stream is too short for its count, the other far too long."""
    assert "truncated" in refused(gzipped(spz_header(3, 10**5), 1 << 20) + bytes(3000))
    assert "does not end where its content does" in refused(gzipped(spz_header(3, 10), 200 << 20))


@pytest.mark.slow
def test_the_largest_decompression_bomb_is_refused_in_time() -> None:
    assert ".spz" in refused(gzipped(spz_header(3, 10**7, degree=4), 900 << 20))
    streams = [zstandard.compress(bytes(size * 10**7 - (size == 4))) for size in (9, 1, 3, 3, 4)]
    toc = b"".join(
        struct.pack("<QQ", len(stream), size * 10**7) for stream, size in zip(streams, (9, 1, 3, 3, 4), strict=True)
    )
    header = struct.pack("<4sIIBBBBI12x", b"NGSP", 4, 10**7, 0, 12, 0, 5, 32)
    assert "truncated" in refused(header + toc + b"".join(streams))


@pytest.mark.parametrize("fraction_bits", [0, 24, 255])
def test_positions_are_finite_for_any_number_of_fraction_bits(fraction_bits: int) -> None:
    body = b"\xff\xff\x7f" * 3 + bytes([128, 128, 128, 128, 160, 160, 160]) + bytes(4)
    splat = read(gzip.compress(spz_header(3, 1, fraction_bits=fraction_bits) + body))
    assert splat.gaussians.means[0, 0].item() == np.float32((2**23 - 1) / 2**fraction_bits)


def test_a_false_table_of_streams_is_refused() -> None:
    whole = bytearray(written("spz4", 20))
    for offset in (16, 32, 40, 48, 56):
        for value in (0, 1, 255):
            broken = whole.copy()
            broken[offset : offset + 4] = bytes([value]) * 4
            if bytes(broken) != bytes(whole):
                with pytest.raises(SplatError):
                    formats.read(bytes(broken))


def test_a_file_with_two_formats_has_the_one_that_it_begins_with() -> None:
    zip_end = io.BytesIO()
    assert "is in no format that can be read" in refused(b"PK\x03\x04" + PLY)
    torch.testing.assert_close(read(PLY + zip_end.getvalue() + b"PK\x03\x04").gaussians.means, MEANS)
    torch.testing.assert_close(read(PLY + b"\x1f\x8b" + PLY).gaussians.means, MEANS)

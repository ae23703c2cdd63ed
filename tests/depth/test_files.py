"""Depth files in every format, and those that cannot be read."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sharp_cog.depth.files import described_format, read, write_metric_npy
from sharp_cog.errors import DepthError, NotInstalledError, OutputError
from tests.depth.samples import DEPTH, exr, npy, npz, pfm, png, tiff, zip_of


def npy_of_header(header: str) -> bytes:
    """Return a .npy with any text for its header, followed by the numbers of `DEPTH`."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + DEPTH.tobytes()


def npy_header(height: int, width: int) -> bytes:
    """Return the header of a .npy of float32 alone."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (height, width)})
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4"])
@pytest.mark.parametrize("shape", [(80, 120), (1, 80, 120), (80, 120, 1)])
def test_a_npy_may_have_any_float_type_and_channels_of_one(dtype: str, shape: tuple[int, ...]) -> None:
    array = DEPTH.astype(dtype).reshape(shape)
    depth_m = read(npy(array)).values
    assert depth_m.dtype == np.float32
    np.testing.assert_array_equal(depth_m, array.reshape(80, 120).astype(np.float32))


def test_a_npy_may_hold_integers_or_be_in_fortran_order() -> None:
    metres = np.rint(DEPTH).astype(np.int16)
    np.testing.assert_array_equal(read(npy(metres)).values, metres)
    np.testing.assert_array_equal(read(npy(np.asfortranarray(DEPTH))).values, DEPTH)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_png_or_tiff_of_grey_holds_the_integers_of_its_pixels(dtype: type) -> None:
    grey: NDArray[np.generic] = np.rint(DEPTH * 50).astype(dtype)
    for content in (png(grey), tiff(grey)):
        raw = read(content)
        np.testing.assert_array_equal(raw.values, grey)
        assert raw.is_integer


def test_every_format_holds_the_same_numbers(tmp_path: Path) -> None:
    halves = DEPTH.astype(np.float16).astype(np.float32)
    files = {
        "npz": (npz(depth=DEPTH), DEPTH),
        "npz of doubles with a channel": (npz(a=DEPTH[None].astype(np.float64)), DEPTH),
        "tiff": (tiff(DEPTH), DEPTH),
        "tiff, packed": (tiff(DEPTH, compression="tiff_deflate"), DEPTH),
        "pfm": (pfm(DEPTH), DEPTH),
        "pfm, big-endian": (pfm(DEPTH, ">"), DEPTH),
        "exr": (exr(tmp_path, Z=DEPTH), DEPTH),
        "exr of halves": (exr(tmp_path, depth=DEPTH.astype(np.float16)), halves),
    }
    for name, (content, expected) in files.items():
        np.testing.assert_array_equal(read(content).values, expected, err_msg=name)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_files_of_other_content_are_refused(tmp_path: Path) -> None:
    rgb = np.zeros((80, 120, 3), np.uint8)
    cases = {
        "holds 2 arrays": npz(a=DEPTH, b=DEPTH),
        "holds object": npz(a=np.array([{"a": 1}], dtype=object)),
        "which is not an array": zip_of("readme.txt", b"hello"),
        "TIFF of mode RGB": tiff(rgb),
        "three channels": b"PF" + pfm(DEPTH)[2:],
        "promises 120x80 floats": pfm(DEPTH)[:-1],
        "header is broken: it should": b"Pf\n120 ",
        "header is broken \\(": b"Pf\nwide 80\n-1\n" + DEPTH.tobytes(),
        "an image in colours": exr(tmp_path, RGB=np.stack([DEPTH, DEPTH * 2, DEPTH], axis=-1)),
        "exr is broken": exr(tmp_path, Z=DEPTH)[:200],
        "npz is broken": npz(a=DEPTH)[:-30],
        "broken or truncated": tiff(DEPTH)[:60],
    }
    for message, content in cases.items():
        with pytest.raises(DepthError, match=message):
            read(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "zero bytes"),
        (b"text", "not a depth map: give a .npy"),
        (npy(np.array([{"a": 1}], dtype=object)), "holds object"),
        (npy(DEPTH.astype(complex)), "holds complex128"),
        (npy(np.array(["a"])), "not numbers"),
        (npy(np.ones((2, 80, 120))), r"shape \(2, 80, 120\)"),
        (npy(np.ones(120)), "one map"),
        (npy(np.ones((0, 120))), "one map"),
        (npy(DEPTH)[:-4], "truncated"),
        (npy(DEPTH) + b"more", "broken"),
        (npy(DEPTH)[:40], "header is broken"),
        (npy_of_header("{[]: 1}"), "header is broken"),
        (npy_of_header("{1: 1, 'a': 2}"), "header is broken"),
        (npy_of_header("(" * 5000), "header is broken"),
        (npy_of_header("-" * 9000 + "1"), "header is broken"),
        (npy_of_header("{'descr': (), 'fortran_order': False, 'shape': (80, 120)}"), "header is broken"),
        (npy_of_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-80, -120)}"), "one map"),
        (b"\x93NUMPY\x09\x00", "header is broken"),
        (png(np.arange(80 * 120 * 3, dtype=np.uint8).reshape(80, 120, 3)), "in colours"),
        (png(np.ones((80, 120), np.uint16))[:100], "broken or truncated"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(DepthError, match=message):
        read(content)


def test_a_shape_that_lies_is_refused_before_memory_is_allocated() -> None:
    content = npy_header(80_000_000, 120_000_000) + DEPTH.tobytes()
    tracemalloc.start()
    with pytest.raises(DepthError, match="promises"):
        read(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


def test_an_npz_that_would_fill_the_memory_is_refused_before_it_is_expanded() -> None:
    header = npy_header(10240, 11520)
    bomb = bytearray(zip_of("a.npy", header))
    size = bomb.rindex(b"PK\1\2") + 24  # The directory says how long the file is when it is expanded.
    bomb[size : size + 4] = (len(header) + 4 * 10240 * 11520).to_bytes(4, "little")
    with pytest.raises(DepthError, match="limit is 100 MP"):
        read(bytes(bomb))


def test_reading_an_exr_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = exr(tmp_path, Z=DEPTH)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotInstalledError, match=r"\.\[depth\]"):
        read(content)


def test_a_structured_npy_of_version_0_1_says_that_it_holds_metres() -> None:
    raw = read(npy(np.full((80, 120), 0.7, np.float32).view([("depth_m", "<f4")])))
    assert (raw.values == np.float32(0.7)).all()
    assert raw.stated is not None
    assert (raw.stated.format, raw.stated.unit_m, raw.stated.is_certain) == ("metric", 1.0, True)
    assert read(npy(DEPTH)).stated is None


@pytest.mark.parametrize("focal", ["focallength_px", "focal_length_px", "f_px"])
def test_the_depth_and_the_focal_length_of_an_npz_are_found_by_name(focal: str) -> None:
    content = npz(confidence=DEPTH * 9, depth=DEPTH, **{focal: np.array(300.0)}, mask=DEPTH > 2)
    raw = read(content)
    np.testing.assert_array_equal(raw.values, DEPTH)
    assert raw.focal_length_px == 300
    assert raw.stated is not None
    assert raw.stated.is_certain


@pytest.mark.parametrize("value", [np.float32(0), np.float32(np.nan), DEPTH, np.array("wide"), np.zeros(0)])
def test_a_focal_length_that_is_none_is_ignored(value: NDArray[np.generic]) -> None:
    raw = read(npz(depth=DEPTH, focallength_px=value))
    assert raw.focal_length_px is None
    assert raw.stated is not None
    assert not raw.stated.is_certain


def test_metres_come_before_disparity_in_an_npz() -> None:
    np.testing.assert_array_equal(read(npz(disparity=1 / DEPTH, depth=DEPTH)).values, DEPTH)
    raw = read(npz(rgb=DEPTH, disparity=1 / DEPTH))
    assert raw.stated is not None
    assert raw.stated.format == "inverse-relative"


def test_the_depth_of_an_exr_with_layers_is_found_by_name(tmp_path: Path) -> None:
    layers = {
        **{f"ViewLayer.Combined.{name}": DEPTH * 0 for name in "RGBA"},
        **{f"ViewLayer.Position.{name}": DEPTH * 2 for name in "XYZ"},
        "ViewLayer.Mist.Z": DEPTH * 3,
        "ViewLayer.Depth.Z": DEPTH,
    }
    raw = read(exr(tmp_path, **layers))
    np.testing.assert_array_equal(raw.values, DEPTH)
    assert raw.stated is not None
    assert "channel 'ViewLayer.Depth.Z'" in raw.stated.reason


def test_an_exr_of_equal_channels_is_a_depth_map_and_one_of_colours_is_not(tmp_path: Path) -> None:
    raw = read(exr(tmp_path, R=DEPTH, G=DEPTH, B=DEPTH))
    np.testing.assert_array_equal(raw.values, DEPTH)
    assert raw.stated is None
    with pytest.raises(DepthError, match="an image in colours"):
        read(exr(tmp_path, R=DEPTH, G=DEPTH * 2, B=DEPTH))
    with pytest.raises(DepthError, match="channels X, Y, Z: give one of depth"):
        read(exr(tmp_path, X=DEPTH, Y=DEPTH, Z=DEPTH))


def test_a_written_depth_map_is_a_plain_array_with_its_description_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "room.npy"
    write_metric_npy(path, DEPTH.T, estimator="depth-pro", focal_length_px=None)
    array = np.load(path)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, DEPTH.T)
    facts = json.loads((tmp_path / "room.npy.json").read_text())
    assert facts == {"format": "metric", "unit": "m", "width": 80, "height": 120, "estimator": "depth-pro"}
    assert described_format(path) == "metric"
    with pytest.raises(OutputError, match="cannot write"):
        write_metric_npy(tmp_path / "missing" / "room.npy", DEPTH)


def test_a_description_may_name_any_format(tmp_path: Path) -> None:
    path, description = tmp_path / "map.npy", tmp_path / "map.npy.json"
    assert described_format(path) is None
    description.write_text('{"format": "inverse-relative"}')
    assert described_format(path) == "inverse-relative"


@pytest.mark.parametrize(
    ("content", "warning"),
    [
        (b"{", "cannot be read and is ignored"),
        (b"\xff\xfe", "cannot be read and is ignored"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "names the format None and is ignored"),
        (b'{"format": "feet"}', "names the format 'feet' and is ignored: name one of metric, relative"),
        (b'{"format": "auto"}', "names the format 'auto'"),
        (b'{"format": ["metric"]}', "is ignored"),
    ],
)
def test_a_description_that_cannot_be_used_is_ignored_with_a_warning(
    content: bytes, warning: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "map.npy.json").write_bytes(content)
    assert described_format(tmp_path / "map.npy") is None
    assert warning in caplog.text


def test_only_a_npy_has_a_description(tmp_path: Path) -> None:
    (tmp_path / "map.png.json").write_text('{"format": "relative"}')
    assert described_format(tmp_path / "map.png") is None


def test_a_png_of_equal_colours_is_grey_and_one_of_16_bits_is_refused() -> None:
    grey = np.arange(80 * 120, dtype=np.uint8).reshape(80, 120)
    for channels in (3, 4):
        raw = read(png(grey[..., None].repeat(channels, axis=2)))
        np.testing.assert_array_equal(raw.values, grey)
        assert raw.is_integer
    deep = bytearray(png(grey[..., None].repeat(3, axis=2)))
    deep[24] = 16  # The bits of a channel, which the pixels do not have.
    with pytest.raises(DepthError):
        read(bytes(deep))

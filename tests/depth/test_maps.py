"""Decoding depth maps: 16-bit PNG in millimetres and .npy in metres, holes, outliers and refusals."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from sharp_cog.depth.maps import decode, known_everywhere
from sharp_cog.errors import DepthError
from sharp_cog.geometry.camera import Camera

CAMERA = Camera(width=120, height=80, focal_length_px=100.0)
DEPTH = np.random.default_rng(0).uniform(1, 5, (80, 120)).astype(np.float32)


def npy(array: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def npy_of_header(header: str) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + DEPTH.tobytes()


def png(array: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4"])
@pytest.mark.parametrize("shape", [(80, 120), (1, 80, 120), (80, 120, 1)])
def test_npy_in_metres(dtype: str, shape: tuple[int, ...]) -> None:
    array = DEPTH.astype(dtype).reshape(shape)
    depth_m = decode(npy(array), CAMERA).depth_m
    assert depth_m.dtype == np.float32
    np.testing.assert_array_equal(depth_m, array.reshape(80, 120).astype(np.float32))


def test_npy_of_integers_and_in_fortran_order() -> None:
    metres = np.rint(DEPTH).astype(np.int16)
    np.testing.assert_array_equal(decode(npy(metres), CAMERA).depth_m, metres)
    np.testing.assert_array_equal(decode(npy(np.asfortranarray(DEPTH)), CAMERA).depth_m, DEPTH)


def test_png_in_millimetres() -> None:
    millimetres = np.rint(DEPTH * 1000).astype(np.uint16)
    np.testing.assert_allclose(decode(png(millimetres), CAMERA).depth_m, millimetres / 1000, rtol=1e-6)


@pytest.mark.parametrize("shape", [(160, 240), (81, 120), (8, 12)])
def test_any_size_of_the_pictures_aspect(shape: tuple[int, int]) -> None:
    assert decode(npy(np.ones(shape, np.float32)), CAMERA).depth_m.shape == shape


@pytest.mark.parametrize("unknown", [np.nan, np.inf, -np.inf, 0.0, -1.0])
def test_unknown_pixels_are_filled_from_their_neighbours(unknown: float, caplog: pytest.LogCaptureFixture) -> None:
    array = np.repeat(np.linspace(1, 3, 120, dtype=np.float32)[None], 80, axis=0)
    holes = np.zeros_like(array, dtype=bool)
    holes[20:50, 30:60] = holes[79, :] = holes[0, 0] = True
    decoded = decode(npy(np.where(holes, np.float32(unknown), array)), CAMERA, depth_format="metric")
    assert (np.isnan(decoded.depth_m) == holes).all()
    filled = known_everywhere(decoded).depth_m
    np.testing.assert_array_equal(filled[~holes], array[~holes])
    assert np.abs(filled[holes] - array[holes]).max() < 0.3
    assert f"{holes.sum()} of 9600" in caplog.text


def test_a_near_zero_outlier_does_not_flatten_the_scene(caplog: pytest.LogCaptureFixture) -> None:
    array = DEPTH.copy()
    array[3, 4] = 1e-5
    depth_m = decode(npy(array), CAMERA).depth_m
    assert depth_m[3, 4] == pytest.approx(np.quantile(array, 0.001), rel=1e-3)
    assert depth_m.min() > 0.9
    assert "1 pixels" in caplog.text


def test_an_outlier_in_a_hole_does_not_spread(caplog: pytest.LogCaptureFixture) -> None:
    array = np.zeros((80, 120), np.float32)
    array[:, :60] = 2
    array[40, 100] = 1e-5
    np.testing.assert_array_equal(known_everywhere(decode(npy(array), CAMERA)).depth_m, np.full_like(array, 2))
    assert "1 pixels" in caplog.text


def test_holes_stay_within_the_range_of_the_known(caplog: pytest.LogCaptureFixture) -> None:
    array = np.zeros((81, 121), np.float32)
    array[::9, ::7] = np.finfo(np.float32).max
    array[3, 5] = array[70, 100] = 1.0
    depth_m = known_everywhere(decode(npy(array), CAMERA, depth_format="metric")).depth_m
    assert np.isfinite(depth_m).all()
    assert depth_m.min() == 1.0


def test_a_near_object_of_some_size_stays() -> None:
    array = DEPTH.copy()
    array[:10, :10] = 0.2
    assert (decode(npy(array), CAMERA).depth_m[:10, :10] == np.float32(0.2)).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "zero bytes"),
        (b"text", "not a depth map: give a .npy"),
        (npy(np.array([{"a": 1}], dtype=object)), "holds object"),
        (npy(DEPTH.astype(complex)), "holds complex128"),
        (npy(np.array(["a"])), "not numbers"),
        (npy(np.zeros((80, 120))), "no known pixel"),
        (npy(np.full((80, 120), np.nan)), "no known pixel"),
        (npy(np.ones((2, 80, 120))), r"shape \(2, 80, 120\)"),
        (npy(np.ones(120)), "one map"),
        (npy(np.ones((0, 120))), "one map"),
        (npy(DEPTH.T), "80x120, the picture 120x80"),
        (npy(np.ones((80, 124))), "differ by 3%"),
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
        (png(np.zeros((80, 120, 3), np.uint8)), "mode RGB"),
        (png(np.ones((80, 120), np.uint8)), "mode L"),
        (png(np.ones((80, 120), np.uint16))[:100], "broken or truncated"),
    ],
)
def test_refusals(content: bytes, message: str) -> None:
    with pytest.raises(DepthError, match=message):
        decode(content, CAMERA)


def test_a_shape_that_lies_is_refused_before_anything_is_allocated() -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (80000000, 120000000), }"
    header = header.ljust(117) + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + DEPTH.tobytes()
    tracemalloc.start()
    with pytest.raises(DepthError, match="promises"):
        decode(content, CAMERA)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


WHOLE = {"npy": npy(DEPTH[:8, :12]), "png": png(np.rint(DEPTH[:8, :12] * 1000).astype(np.uint16))}


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(sorted(WHOLE)),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_flipped_bytes_give_a_depth_map_or_a_depth_error(name: str, flips: list[tuple[int, int]]) -> None:
    content = bytearray(WHOLE[name])
    for position, value in flips:
        content[position % len(content)] = value
    try:
        depth_map = decode(bytes(content), CAMERA)
    except DepthError:
        return
    known = depth_map.depth_m[~np.isnan(depth_map.depth_m)]
    assert known.size
    assert np.isfinite(known).all()
    filled = known_everywhere(depth_map).depth_m
    assert np.isfinite(filled).all()
    assert (filled > 0).all()

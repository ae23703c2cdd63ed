"""Depth maps in every file format, and what their numbers are taken to mean."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import OpenEXR
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from sharp_cog.depth.maps import decode, known_everywhere
from sharp_cog.errors import DepthError, NotInstalledError
from sharp_cog.geometry.camera import Camera
from sharp_cog.imaging import images

CAMERA = Camera(width=120, height=80, focal_length_px=100.0)
DEPTH = np.random.default_rng(0).uniform(1, 5, (80, 120)).astype(np.float32)


def npy(array: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def tiff(array: NDArray[np.generic], **options: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "TIFF", **options)
    return file.getvalue()


def pfm(array: NDArray[np.float32], order: str = "<") -> bytes:
    """Rows from the bottom up; the sign of the scale is the byte order."""
    height, width = array.shape
    header = f"Pf\n{width} {height}\n{-1.0 if order == '<' else 1.0}\n".encode()
    return header + array[::-1].astype(f"{order}f4").tobytes()


def exr(folder: Path, **channels: NDArray[np.float32]) -> bytes:
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, channels) as file:
        file.write(str(folder / "made.exr"))
    return (folder / "made.exr").read_bytes()


def test_every_file_format_holds_the_same_metres(tmp_path: Path) -> None:
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
        depth_map = decode(content, CAMERA)
        np.testing.assert_array_equal(depth_map.depth_m, expected, err_msg=name)
        assert depth_map.is_metric


def test_files_that_are_no_depth_map_are_refused(tmp_path: Path) -> None:
    picture = np.zeros((80, 120, 3), np.uint8)
    cases = {
        "holds 2 arrays": npz(a=DEPTH, b=DEPTH),
        "holds object": npz(a=np.array([{"a": 1}], dtype=object)),
        "which is not an array": _zip_of("readme.txt", b"hello"),
        "TIFF of mode RGB": tiff(picture),
        "three channels": b"PF" + pfm(DEPTH)[2:],
        "promises 120x80 floats": pfm(DEPTH)[:-1],
        "header is broken: it should": b"Pf\n120 ",
        "header is broken \\(": b"Pf\nwide 80\n-1\n" + DEPTH.tobytes(),
        "channels B, G, R|channels RGB": exr(tmp_path, RGB=np.zeros((80, 120, 3), np.float32)),
        "exr is broken": exr(tmp_path, Z=DEPTH)[:200],
        "npz is broken": npz(a=DEPTH)[:-30],
        "broken or truncated": tiff(DEPTH)[:60],
    }
    for message, content in cases.items():
        with pytest.raises(DepthError, match=message):
            decode(content, CAMERA)


def _zip_of(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


def test_an_npz_that_would_fill_the_memory_is_refused() -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10240, 11520)})
        for _ in range(900):
            file.write(bytes(1 << 20))
    with pytest.raises(DepthError, match="limit is 100 MP"):
        decode(bomb.getvalue(), CAMERA)


def test_exr_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = exr(tmp_path, Z=DEPTH)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotInstalledError, match=r"\.\[depth\]"):
        decode(content, CAMERA)


def test_relative_maps_lie_between_one_and_ten_metres(caplog: pytest.LogCaptureFixture) -> None:
    values = np.linspace(0, 1, 80 * 120, dtype=np.float32).reshape(80, 120)
    caplog.set_level("INFO")
    depth_map = decode(npy(values), CAMERA)
    assert not depth_map.is_metric
    np.testing.assert_allclose(depth_map.depth_m, 1 + 9 * values, rtol=1e-6)
    assert "taken as relative, since all lies within -0.1 and 1.5" in caplog.text
    assert "depth_format" in caplog.text
    outside = decode(npy(values * 1.5 - 0.05), CAMERA).depth_m
    assert (outside.min(), outside.max()) == (1.0, 10.0)


def test_inverse_relative_maps_have_their_median_at_three_metres() -> None:
    disparity = np.linspace(0, 255, 80 * 120, dtype=np.float32).reshape(80, 120)
    depth_m = decode(npy(disparity), CAMERA).depth_m
    assert np.median(depth_m) == pytest.approx(3.0, rel=1e-3)
    known = disparity > 1e-3
    np.testing.assert_allclose((depth_m * disparity)[known], (depth_m * disparity)[known][-1], rtol=1e-4)
    assert depth_m[0, 0] == depth_m.max(), "zero is clipped to 0.001, as far as it goes"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, "relative"),
        (-0.1, 1.5, "relative"),
        (-0.2, 1.5, "metric"),
        (0.1, 1.6, "metric"),
        (0.5, 50.0, "metric"),
        (0.5, 50.1, "inverse-relative"),
        (0, 65535, "inverse-relative"),
    ],
)
def test_what_the_numbers_look_like_decides(
    low: float, high: float, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    array = np.linspace(low, high, 80 * 120, dtype=np.float64).reshape(80, 120)
    depth_map = decode(npy(array), CAMERA)
    assert f"taken as {expected}" in caplog.text
    assert depth_map.is_metric == (expected == "metric")
    named = decode(npy(array), CAMERA, depth_format=expected)
    np.testing.assert_array_equal(named.depth_m, depth_map.depth_m)


def test_what_says_that_it_is_metric_is_believed() -> None:
    near = np.full((80, 120), 700, np.uint16)
    file = io.BytesIO()
    Image.fromarray(near).save(file, "PNG")
    assert (decode(file.getvalue(), CAMERA).depth_m == np.float32(0.7)).all()
    marked = np.full((80, 120), 0.7, np.float32).view([("depth_m", "<f4")])
    depth_map = decode(npy(marked), CAMERA)
    assert depth_map.is_metric
    assert (depth_map.depth_m == np.float32(0.7)).all()
    assert decode(npy(marked), CAMERA, depth_format="relative").depth_m[0, 0] == pytest.approx(7.3)


@pytest.mark.parametrize("depth_format", ["auto", "metric", "relative", "inverse-relative"])
def test_a_map_of_zeros_is_refused_whatever_it_means(depth_format: str) -> None:
    with pytest.raises(DepthError, match="no known pixel"):
        decode(npy(np.zeros((80, 120), np.float32)), CAMERA, depth_format=depth_format)


def test_negative_metres_alone_are_refused() -> None:
    with pytest.raises(DepthError, match="no known pixel"):
        decode(npy(np.full((80, 120), -2.0)), CAMERA)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_map_of_the_unturned_picture_is_turned_along(orientation: int) -> None:
    """The map and the picture hold the same numbers before EXIF turns the picture: so they must afterwards."""
    pattern = np.arange(80 * 120, dtype=np.float32).reshape(80, 120) / 400 + 2
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    grey = np.repeat((pattern * 9).astype(np.uint8)[..., None], 3, axis=2)
    Image.fromarray(grey).save(file, "PNG", exif=exif)
    source = images.decode(file.getvalue())
    assert (source.camera.width, source.camera.height) == (80, 120)
    depth_m = decode(npy(pattern), source.camera, turn=source.turn).depth_m
    np.testing.assert_array_equal((depth_m * 9).astype(np.uint8), source.rgb[..., 0])
    upright = np.ascontiguousarray(depth_m)
    np.testing.assert_array_equal(decode(npy(upright), source.camera, turn=source.turn).depth_m, upright)


def _samples() -> dict[str, bytes]:
    return {"npz": npz(a=DEPTH), "tiff": tiff(DEPTH), "pfm": pfm(DEPTH)}


WHOLE = _samples()


@given(
    name=st.sampled_from(sorted(WHOLE)),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 10**6) | st.none(),
)
def test_broken_bytes_give_a_depth_map_or_a_depth_error(
    name: str, flips: list[tuple[int, int]], cut: int | None
) -> None:
    content = bytearray(WHOLE[name])
    for position, value in flips:
        content[position % min(len(content), 400)] = value
    if cut is not None:
        content = content[: cut % len(content)]
    try:
        depth_map = known_everywhere(decode(bytes(content), CAMERA))
    except DepthError:
        return
    assert np.isfinite(depth_map.depth_m).all()
    assert (depth_map.depth_m > 0).all()

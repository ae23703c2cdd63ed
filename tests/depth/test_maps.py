"""The meaning of a depth map's numbers, unknown pixels, outliers and rotation."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sharp_cog.depth.maps import DepthMap, decode, from_array, known_everywhere
from sharp_cog.errors import DepthError
from sharp_cog.imaging import images
from tests.depth.samples import CAMERA, DEPTH, npy, png


def test_a_relative_map_lies_between_one_and_ten_metres(caplog: pytest.LogCaptureFixture) -> None:
    values = np.linspace(0, 1, 80 * 120, dtype=np.float32).reshape(80, 120)
    caplog.set_level("INFO")
    depth_map = decode(npy(values), CAMERA)
    assert not depth_map.is_metric
    np.testing.assert_allclose(depth_map.depth_m, 1 + 9 * values, rtol=1e-6)
    assert "taken as relative, since all values lie between -0.1 and 1.5" in caplog.text
    assert "depth_format" in caplog.text
    outside = decode(npy(values * 1.5 - 0.05), CAMERA).depth_m
    assert (outside.min(), outside.max()) == (1.0, 10.0)


def test_an_inverse_relative_map_has_its_median_at_three_metres() -> None:
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
def test_the_range_of_the_numbers_decides_their_format(
    low: float, high: float, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    array = np.linspace(low, high, 80 * 120, dtype=np.float64).reshape(80, 120)
    depth_map = decode(npy(array), CAMERA)
    assert f"taken as {expected}" in caplog.text
    assert depth_map.is_metric == (expected == "metric")
    named = decode(npy(array), CAMERA, depth_format=expected)
    np.testing.assert_array_equal(named.depth_m, depth_map.depth_m)


def test_the_format_that_a_file_itself_names_is_believed() -> None:
    assert (decode(png(np.full((80, 120), 700, np.uint16)), CAMERA).depth_m == np.float32(0.7)).all()
    marked = np.full((80, 120), 0.7, np.float32).view([("depth_m", "<f4")])
    depth_map = decode(npy(marked), CAMERA)
    assert depth_map.is_metric
    assert (depth_map.depth_m == np.float32(0.7)).all()
    assert decode(npy(marked), CAMERA, depth_format="relative").depth_m[0, 0] == pytest.approx(7.3)


@pytest.mark.parametrize("depth_format", ["auto", "metric", "relative", "inverse-relative"])
def test_a_map_of_zeros_is_refused_in_every_format(depth_format: str) -> None:
    with pytest.raises(DepthError, match="no known pixel"):
        decode(npy(np.zeros((80, 120), np.float32)), CAMERA, depth_format=depth_format)


@pytest.mark.parametrize("fill", [-2.0, np.nan, -np.inf])
def test_a_map_without_a_known_pixel_is_refused(fill: float) -> None:
    with pytest.raises(DepthError, match="no known pixel"):
        decode(npy(np.full((80, 120), fill)), CAMERA)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_map_in_the_sensors_orientation_is_rotated_with_its_image(orientation: int) -> None:
    """Map and image hold the same numbers before EXIF's rotation, and so they do afterwards."""
    pattern = np.arange(80 * 120, dtype=np.float32).reshape(80, 120) / 400 + 2
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    grey = np.repeat((pattern * 9).astype(np.uint8)[..., None], 3, axis=2)
    Image.fromarray(grey).save(file, "PNG", exif=exif)
    source = images.decode(file.getvalue())
    assert (source.camera.width, source.camera.height) == (80, 120)
    depth_m = decode(npy(pattern), source.camera, orientation=source.orientation).depth_m
    np.testing.assert_array_equal((depth_m * 9).astype(np.uint8), source.rgb[..., 0])
    upright = np.ascontiguousarray(depth_m)
    np.testing.assert_array_equal(decode(npy(upright), source.camera, orientation=source.orientation).depth_m, upright)


@pytest.mark.parametrize("shape", [(160, 240), (81, 120), (8, 12)])
def test_a_map_may_have_any_size_of_the_images_aspect(shape: tuple[int, int]) -> None:
    assert decode(npy(np.ones(shape, np.float32)), CAMERA).depth_m.shape == shape


def test_a_map_of_another_aspect_is_refused() -> None:
    with pytest.raises(DepthError, match="the depth map is 80x120, the image 120x80"):
        decode(npy(DEPTH.T), CAMERA)
    with pytest.raises(DepthError, match="differ by 3%"):
        decode(npy(np.ones((80, 124))), CAMERA)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint16])
def test_a_map_may_be_an_array(dtype: type) -> None:
    array: NDArray[Any] = np.rint(DEPTH).astype(dtype)
    depth_map = from_array(array, CAMERA)
    np.testing.assert_array_equal(depth_map.depth_m, array)
    assert depth_map.is_metric
    assert not from_array(array, CAMERA, depth_format="relative").is_metric


@pytest.mark.parametrize("array", [DEPTH[None], DEPTH[0], DEPTH.astype(complex), np.ones((0, 4)), DEPTH > 2])
def test_an_array_of_another_shape_or_type_is_a_type_error(array: NDArray[Any]) -> None:
    with pytest.raises(TypeError, match=r"give \(height, width\) numbers"):
        from_array(array, CAMERA)


def test_a_depth_map_is_two_dimensional_float32() -> None:
    with pytest.raises(ValueError, match="depth_m is float64"):
        DepthMap(depth_m=DEPTH.astype(np.float64))


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


def test_filled_pixels_stay_within_the_range_of_the_known_ones(caplog: pytest.LogCaptureFixture) -> None:
    array = np.zeros((81, 121), np.float32)
    array[::9, ::7] = np.finfo(np.float32).max
    array[3, 5] = array[70, 100] = 1.0
    depth_m = known_everywhere(decode(npy(array), CAMERA, depth_format="metric")).depth_m
    assert np.isfinite(depth_m).all()
    assert depth_m.min() == 1.0


def test_a_near_object_is_no_outlier() -> None:
    array = DEPTH.copy()
    array[:10, :10] = 0.2
    assert (decode(npy(array), CAMERA).depth_m[:10, :10] == np.float32(0.2)).all()

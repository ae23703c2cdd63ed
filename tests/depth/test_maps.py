"""The meaning of a depth map's numbers, unknown pixels, outliers and rotation."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sharp_cog.depth import maps
from sharp_cog.depth.maps import DepthMap, decode, from_array, known_everywhere
from sharp_cog.errors import DepthError
from sharp_cog.geometry.camera import Camera
from sharp_cog.imaging import images
from tests.depth.samples import CAMERA, DEPTH, npy, npz, png, tiff


def test_a_relative_map_lies_between_one_and_ten_metres() -> None:
    values = np.linspace(0, 1, 80 * 120, dtype=np.float32).reshape(80, 120)
    depth_map = decode(npy(values), CAMERA, depth_format="relative")
    assert not depth_map.is_metric
    np.testing.assert_allclose(depth_map.depth_m, 1 + 9 * values, rtol=1e-6)
    outside = decode(npy(values * 1.5 - 0.05), CAMERA, depth_format="relative").depth_m
    assert (outside.min(), outside.max()) == (1.0, 10.0)


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(0, 65535, 9600).astype(np.uint16),
        np.linspace(100, 240, 9600).astype(np.uint8),
        np.linspace(2, 9, 9600),
        np.linspace(-3, 3, 9600),
    ],
    ids=["16 bits", "8 bits", "floats", "negative floats"],
)
def test_a_relative_map_that_is_not_from_0_to_1_is_mapped_by_its_own_range(values: NDArray[Any]) -> None:
    depth_m = from_array(values.reshape(80, 120), CAMERA, depth_format="relative").depth_m
    np.testing.assert_allclose(depth_m.ravel(), np.linspace(1, 10, 9600), atol=0.1)


@pytest.mark.parametrize("mode", [np.uint8, np.uint16])
def test_a_grey_png_of_relative_depth_keeps_its_order(mode: type) -> None:
    grey: NDArray[Any] = (np.linspace(0, 1, 9600).reshape(80, 120) * np.iinfo(mode).max).astype(mode)
    depth_m = decode(png(grey), CAMERA, depth_format="relative").depth_m
    np.testing.assert_allclose(depth_m.ravel(), np.linspace(1, 10, 9600), atol=0.1)
    with pytest.raises(DepthError, match="depth_format"):
        decode(png(grey), CAMERA)


@pytest.mark.parametrize("scale", [1e-4, 0.01, 1.0, 255.0, 65535.0])
def test_an_inverse_relative_map_has_its_median_at_three_metres_whatever_its_scale(scale: float) -> None:
    disparity = np.linspace(0, 1, 80 * 120, dtype=np.float32).reshape(80, 120)
    depth_m = decode(npy(disparity * np.float32(scale)), CAMERA, depth_format="inverse-relative").depth_m
    assert np.median(depth_m) == pytest.approx(3.0, rel=1e-3)
    product = (depth_m * disparity)[disparity > 1e-3]
    np.testing.assert_allclose(product, product[-1], rtol=1e-4)
    assert depth_m[0, 0] == depth_m.max() == pytest.approx(1.5 / 0.99e-3, rel=1e-3), "zero is far, not unknown"


def test_the_format_that_a_file_itself_names_is_believed() -> None:
    depth_map = decode(png(np.full((80, 120), 700, np.uint16)), CAMERA)
    assert (depth_map.depth_m == np.float32(0.7)).all()
    assert depth_map.taken_as == "metric, as integers of a depth camera, in millimetres"
    marked = np.full((80, 120), 0.7, np.float32).view([("depth_m", "<f4")])
    depth_map = decode(npy(marked), CAMERA)
    assert depth_map.is_metric
    assert depth_map.taken_as == "metric, by the name of its field 'depth_m'"
    assert (depth_map.depth_m == np.float32(0.7)).all()
    named = decode(npy(marked), CAMERA, depth_format="relative")
    assert named.depth_m[0, 0] == pytest.approx(7.3)
    assert not named.taken_as


@pytest.mark.parametrize(
    ("unit", "metres"),
    [("m", 1.0), ("mm", 1e-3), ("cm", 1e-2), ("kitti", 1 / 256), ("tum", 1 / 5000), ("0.25", 0.25), ("auto", 1e-3)],
)
@pytest.mark.parametrize("depth_format", ["auto", "metric"])
def test_the_unit_of_integers_can_be_named(unit: str, metres: float, depth_format: str) -> None:
    values = np.full((80, 120), 9000, np.uint16)
    for decoded in (
        decode(png(values), CAMERA, depth_format=depth_format, depth_unit=unit),
        decode(tiff(values), CAMERA, depth_format=depth_format, depth_unit=unit),
        from_array(values, CAMERA, depth_format=depth_format, depth_unit=unit),
    ):
        assert decoded.is_metric
        np.testing.assert_allclose(decoded.depth_m, min(9000 * metres, 10_000), rtol=1e-6)


def test_the_unit_of_floats_is_metres_unless_it_is_named() -> None:
    centimetres = np.full((80, 120), 250.0, np.float32)
    assert decode(npy(centimetres), CAMERA, depth_unit="cm").depth_m[0, 0] == 2.5
    assert decode(npy(centimetres), CAMERA, depth_format="metric").depth_m[0, 0] == 250
    assert decode(npz(depth_cm=centimetres), CAMERA).depth_m[0, 0] == 2.5
    assert decode(npz(depth_cm=centimetres), CAMERA, depth_unit="mm").depth_m[0, 0] == 0.25


@pytest.mark.parametrize("sky", [np.inf, 1e10, 3e38])
def test_a_sky_at_infinity_is_far_and_not_unknown(sky: float) -> None:
    array = DEPTH.copy()
    array[:20] = sky
    depth_m = decode(npy(array), CAMERA, depth_format="metric").depth_m
    assert (depth_m[:20] == 10_000).all()
    np.testing.assert_array_equal(depth_m[20:], array[20:])
    with np.errstate(over="ignore"):
        halves = array.astype(np.float16)
    assert (decode(npy(halves), CAMERA, depth_format="metric").depth_m[:20] == 10_000).all()


def test_the_focal_length_beside_a_depth_map_is_that_of_the_image() -> None:
    assert decode(npz(depth=DEPTH, focallength_px=np.array(90.0)), CAMERA).focal_length_px == 90
    half = npz(depth=DEPTH[::2, ::2], focallength_px=np.array(45.0))
    assert decode(half, CAMERA).focal_length_px == 90
    assert decode(npy(DEPTH), CAMERA, depth_format="metric").focal_length_px is None


@pytest.mark.parametrize("depth_format", ["auto", "metric", "relative", "inverse-relative"])
def test_a_map_of_zeros_is_refused_in_every_format(depth_format: str) -> None:
    with pytest.raises(DepthError, match="no known pixel"):
        decode(npy(np.zeros((80, 120), np.float32)), CAMERA, depth_format=depth_format)


@pytest.mark.parametrize("fill", [-2.0, np.nan, -np.inf])
def test_a_map_without_a_known_pixel_is_refused(fill: float) -> None:
    with pytest.raises(DepthError, match="no known pixel"):
        decode(npy(np.full((80, 120), fill)), CAMERA)
    with pytest.raises(DepthError, match="no known pixel"):
        decode(npy(np.full((80, 120), fill)), CAMERA, depth_format="inverse-relative")


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

    def decoded(array: NDArray[Any]) -> NDArray[np.float32]:
        return decode(npy(array), source.camera, depth_format="metric", orientation=source.orientation).depth_m

    depth_m = decoded(pattern)
    np.testing.assert_array_equal((depth_m * 9).astype(np.uint8), source.rgb[..., 0])
    upright = np.ascontiguousarray(depth_m)
    np.testing.assert_array_equal(decoded(upright), upright)
    np.testing.assert_array_equal(decoded(np.repeat(np.repeat(pattern, 2, 0), 2, 1)), upright.repeat(2, 0).repeat(2, 1))
    small = decoded(pattern[::8, ::8])
    assert small.shape == (15, 10)
    assert set(small.ravel()) == set(pattern[::8, ::8].ravel())


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
    depth_map = from_array(array, CAMERA, depth_format="metric")
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


@pytest.mark.parametrize("unknown", [np.nan, -np.inf, 0.0, -1.0])
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
    depth_m = decode(npy(array), CAMERA, depth_format="metric").depth_m
    assert depth_m[3, 4] == pytest.approx(np.quantile(array, 0.001), rel=1e-3)
    assert depth_m.min() > 0.9
    assert "1 pixels" in caplog.text


def test_an_outlier_in_a_hole_does_not_spread(caplog: pytest.LogCaptureFixture) -> None:
    array = np.zeros((80, 120), np.float32)
    array[:, :60] = 2
    array[40, 100] = 1e-5
    np.testing.assert_array_equal(
        known_everywhere(decode(npy(array), CAMERA, depth_format="metric")).depth_m, np.full_like(array, 2)
    )
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
    assert (decode(npy(array), CAMERA, depth_format="metric").depth_m[:10, :10] == np.float32(0.2)).all()


@pytest.mark.parametrize(("height", "width"), [(61, 47), (64, 48), (1, 9), (130, 3)])
@pytest.mark.parametrize("depth_format", ["metric", "relative", "inverse-relative"])
def test_a_map_is_converted_and_filled_in_strips_as_it_is_at_once(
    height: int, width: int, depth_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(0)
    values = random.uniform(0.5, 5, (height, width)).astype(np.float32)
    values[random.random((height, width)) < 0.4] = np.nan
    values[: height // 3] = np.nan
    camera = Camera(width=width, height=height, focal_length_px=50.0)

    def filled() -> NDArray[Any]:
        return known_everywhere(from_array(values, camera, depth_format=depth_format)).depth_m

    at_once = filled()
    monkeypatch.setattr(maps, "_STRIP_PX", 1)
    np.testing.assert_array_equal(filled(), at_once)
    assert np.isfinite(at_once).all()
    if depth_format == "metric":
        np.testing.assert_array_equal(at_once[np.isfinite(values)], values[np.isfinite(values)])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["png", "npy", "tiff"])
def test_an_image_and_a_map_of_100_megapixels_are_lifted_in_2_gb(kind: str, tmp_path: Path) -> None:
    depth_m = np.broadcast_to(np.linspace(2, 5, 10_000, dtype=np.float32), (10_000, 10_000)).copy()
    depth_m[2000:5000, 1000:4000] = 0
    Image.new("RGB", (10_000, 10_000), "grey").save(tmp_path / "image.png")
    content = {"png": lambda: png((depth_m * 1000).astype(np.uint16)), "npy": lambda: npy(depth_m)}
    (tmp_path / "depth").write_bytes(content.get(kind, lambda: tiff(depth_m))())
    script = (
        "import resource\n"
        "from sharp_cog import PredictOptions, Settings, SharpPipeline\n"
        "lift = SharpPipeline.load(Settings(model='lift', device='cpu'))\n"
        "lift('image.png', PredictOptions(depth_format='metric'), depth='depth')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, check=True)
    assert int(done.stdout) < 2e9

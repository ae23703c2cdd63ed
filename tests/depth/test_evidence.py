"""What the numbers of a depth map are, by its own names and by its values: never in the wrong order."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import OpenEXR
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sharp_cog.depth.evidence import from_file_name, from_name, from_text
from sharp_cog.depth.maps import decode, from_array
from sharp_cog.errors import DepthError
from sharp_cog.geometry.camera import Camera
from sharp_cog.model.external_depth import rank_correlation
from tests.depth.samples import exr, npy, npz, pfm, png, tiff
from tests.depth.scenes import (
    CLEAR,
    OTHER_SCENES,
    SCENES,
    bowl,
    crowd,
    disparity_kinds,
    field,
    metric_kinds,
    noisy,
    portrait,
    relative_kinds,
    room,
    street,
    table,
)

ALL_SCENES = SCENES | OTHER_SCENES


def camera_of(values: NDArray[Any]) -> Camera:
    height, width = values.shape
    return Camera(width=width, height=height, focal_length_px=150.0)


def order(depth_m: NDArray[Any], true_m: NDArray[Any]) -> float:
    """Return the rank correlation of a map with the true depth, where that is finite."""
    known = np.isfinite(true_m) & np.isfinite(depth_m)
    return rank_correlation(depth_m[known].astype(np.float64), true_m[known].astype(np.float64))


def is_refused(values: NDArray[Any]) -> bool:
    """Return whether a map is refused with the name of the option that answers the question."""
    try:
        from_array(values, camera_of(values))
    except DepthError as error:
        return "depth_format" in str(error)
    return False


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("scene", ALL_SCENES)
def test_a_map_of_unknown_kind_is_refused_rather_than_inverted(scene: str, noise: float) -> None:
    true_m = noisy(ALL_SCENES[scene](), noise)
    camera = camera_of(true_m)
    kinds = [*metric_kinds(true_m), *disparity_kinds(true_m), *relative_kinds(true_m)]
    for name, values in kinds:
        for content in [npy(values)] + (
            [png(values)] if values.dtype.kind == "u" else [pfm(values.astype(np.float32))]
        ):
            try:
                depth_map = decode(content, camera)
            except DepthError:
                continue
            assert order(depth_map.depth_m, true_m) > 0, name
            assert depth_map.taken_as.startswith("metric" if depth_map.is_metric else "inverse-relative")


@pytest.mark.parametrize("scene", CLEAR)
def test_metres_and_raw_disparity_are_recognised_where_surfaces_are_flat(scene: str) -> None:
    true_m = SCENES[scene]()
    camera = camera_of(true_m)
    for name, values in metric_kinds(true_m):
        depth_map = from_array(values, camera)
        assert depth_map.is_metric, name
        near = true_m < 50
        np.testing.assert_allclose(depth_map.depth_m[near], true_m[near], rtol=0.01, err_msg=name)
    raw = [values for name, values in disparity_kinds(true_m) if "times" in name or "shift" in name]
    recognised = [values for values in raw if not is_refused(values)]
    assert len(recognised) >= 4, "one may look normalised"
    for values in recognised:
        depth_map = from_array(values, camera)
        assert not depth_map.is_metric
        assert order(depth_map.depth_m, true_m) > 0.95


@pytest.mark.parametrize("scene", [room, table])
def test_an_indoor_map_and_a_close_up_keep_their_scale_under_noise(scene: Any) -> None:
    true_m = scene()
    depth_m = from_array(noisy(true_m, 0.005).astype(np.float32), camera_of(true_m)).depth_m
    assert np.median(depth_m) == pytest.approx(np.median(true_m), rel=0.01)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_normalised_map_is_refused_with_the_option_to_give(dtype: type) -> None:
    disparity = 1 / room()
    unit = (disparity - disparity.min()) / np.ptp(disparity)
    values = (unit * (1 if dtype is np.float32 else np.iinfo(dtype).max)).astype(dtype)
    with pytest.raises(DepthError, match=r"\(0 to .*set depth_format to metric .* or inverse-relative"):
        from_array(values, camera_of(values))
    assert order(from_array(values, camera_of(values), depth_format="inverse-relative").depth_m, room()) > 0.95


def test_a_sky_alone_tells_metres_from_disparity() -> None:
    """A sphere before an infinite sky has no plane, and its numbers could be anything but for the sky."""
    true_m = portrait(np.inf)
    true_m[80:] = 4.0
    depth_m = from_array(true_m.astype(np.float32), camera_of(true_m)).depth_m
    assert (depth_m[np.isinf(true_m)] == 10_000).all()
    assert (depth_m[80:] == 4).all()


def test_infinity_in_a_disparity_map_is_no_sky() -> None:
    """Stereo maps, such as Middlebury's, mark unknown pixels by infinity."""
    disparity = (150 / room()).astype(np.float32)
    disparity[:50, 10:30] = np.inf
    depth_map = from_array(disparity, camera_of(disparity), depth_format="inverse-relative")
    assert np.isnan(depth_map.depth_m[:50, 10:30]).all()
    with pytest.raises(DepthError, match="may be metres or disparity"):
        from_array(disparity, camera_of(disparity))


def test_a_made_up_ramp_is_refused_since_it_would_be_disparity_by_its_shape() -> None:
    ramp = np.linspace(1, 4, 48 * 64, dtype=np.float32).reshape(48, 64)
    with pytest.raises(DepthError, match=r"values of the depth map \(1 to 4\) may be metres or disparity"):
        from_array(ramp, camera_of(ramp))
    assert from_array(1 / ramp, camera_of(ramp)).is_metric, "this is a plane in metres"
    assert decode(npz(depth=ramp), camera_of(ramp)).is_metric, "the name settles it"
    assert is_refused((ramp * 1000).astype(np.uint16)), "the disparity of a floor, by a stereo camera, looks the same"


@pytest.mark.parametrize("place", [10, 60, 100])
def test_a_made_up_ramp_with_objects_is_refused_too(place: int) -> None:
    """Metres that grow linearly upwards have the shape of a ceiling's disparity."""
    metres = np.linspace(8, 3, 120)[:, None].repeat(160, axis=1)
    metres[place : place + 15, 60:90] = 1.5
    for values in (metres, 1 / metres, 100 / metres):
        assert is_refused(values.astype(np.float32))


def test_a_flat_map_has_no_order_and_is_metric() -> None:
    depth_map = from_array(np.full((48, 64), 2.0), Camera(width=64, height=48, focal_length_px=60))
    assert depth_map.taken_as == "metric, since it is flat, and has no order"
    assert (depth_map.depth_m == 2).all()


def test_negative_values_are_not_metres_unless_one_of_them_marks_unknown_pixels() -> None:
    values = room().astype(np.float32)
    values[:20, :20] = -1
    depth_map = from_array(values, camera_of(values))
    assert depth_map.is_metric
    assert np.isnan(depth_map.depth_m[:20, :20]).all()
    values[:10, :20] = -0.5
    with pytest.raises(DepthError, match="negative in places"):
        from_array(values, camera_of(values))


@pytest.mark.parametrize(
    ("name", "format_", "unit_m"),
    [
        ("depth", "metric", 1.0),
        ("depth_m", "metric", 1.0),
        ("depth_mm", "metric", 0.001),
        ("depthMM", "metric", 0.001),
        ("depth_cm", "metric", 0.01),
        ("metric_depth", "metric", 1.0),
        ("Z", "metric", 1.0),
        ("ViewLayer.Depth.Z", "metric", 1.0),
        ("disparity", "inverse-relative", 1.0),
        ("disp0", "inverse-relative", 1.0),
        ("inverse_depth", "inverse-relative", 1.0),
        ("invDepth", "inverse-relative", 1.0),
        ("inverse_depth_m", "inverse-relative", 1.0),
    ],
)
def test_names_say_what_numbers_are(name: str, format_: str, unit_m: float) -> None:
    stated = from_name(name, "array")
    assert stated is not None
    assert (stated.format, stated.unit_m) == (format_, unit_m)
    assert stated.reason == f"by the name of its array '{name}'"


@pytest.mark.parametrize("name", ["arr_0", "", "relative_depth", "depth_normalized", "mask", "R", "Mist.Z"])
def test_other_names_say_nothing(name: str) -> None:
    assert from_name(name, "array") is None


def test_a_name_settles_what_the_numbers_leave_open(tmp_path: Path) -> None:
    true_m = portrait(3.0).astype(np.float32)
    camera = camera_of(true_m)
    with pytest.raises(DepthError):
        decode(npy(true_m), camera)
    for content in (npz(depth=true_m), npz(depth_m=true_m), exr(tmp_path, Z=true_m), npz(depth_mm=true_m * 1000)):
        np.testing.assert_allclose(decode(content, camera).depth_m, true_m, rtol=1e-5)
    assert order(decode(npz(disparity=1 / true_m), camera).depth_m, true_m) > 0.99


def test_the_name_depth_is_not_believed_of_numbers_that_look_otherwise() -> None:
    """Relative maps and disparity are called depth too; Depth Pro's focal length and a unit leave no doubt."""
    disparity = (3 / street()).astype(np.float32)
    camera = camera_of(disparity)
    with pytest.raises(DepthError, match="look like disparity, though the map would be metric by the name"):
        decode(npz(depth=disparity), camera)
    with pytest.raises(DepthError, match="normalised"):
        decode(npz(depth=disparity / disparity.max()), camera)
    assert decode(npz(depth=disparity, focallength_px=np.array(150.0)), camera).is_metric
    assert decode(npz(depth_m=disparity), camera).is_metric


def test_floats_in_another_unit_than_metres_are_refused_with_the_option_to_give() -> None:
    millimetres = (room() * 1000).astype(np.float32)
    camera = camera_of(millimetres)
    for content in (npy(millimetres), npz(depth=millimetres)):
        with pytest.raises(DepthError, match=r"median of \d+ m: set depth_unit to mm"):
            decode(content, camera)
        np.testing.assert_allclose(decode(content, camera, depth_unit="mm").depth_m, room(), rtol=1e-5)


def test_integers_that_are_named_depth_are_millimetres() -> None:
    millimetres = (room() * 1000).astype(np.uint16)
    depth_map = decode(npz(depth=millimetres), camera_of(millimetres))
    assert depth_map.taken_as == "metric, by the name of its array 'depth', in millimetres"
    np.testing.assert_allclose(depth_map.depth_m, room(), atol=2e-3)


def test_16_bit_disparity_of_stereo_cameras_is_not_taken_for_millimetres() -> None:
    """KITTI writes disparity times 256 into PNGs of 16 bits."""
    disparity = (256 * 60 / street()).astype(np.uint16)
    for content in (png(disparity), npy(disparity), tiff(disparity)):
        with pytest.raises(DepthError, match="look like disparity, though the map would be metric as integers"):
            decode(content, camera_of(disparity))


@pytest.mark.parametrize("scene", [bowl, crowd])
def test_integers_without_surfaces_that_tell_are_refused_unless_the_file_name_settles_it(scene: Any) -> None:
    """Depth cameras write millimetres and stereo cameras disparity into the same 16 bits."""
    true_m = scene()
    millimetres, disparity = (true_m * 1000).astype(np.uint16), (256 * 60 / true_m).astype(np.uint16)
    camera = camera_of(true_m)
    for values in (millimetres, disparity):
        with pytest.raises(DepthError, match="may be millimetres, or disparity of 16 bits: set depth_format"):
            decode(png(values), camera)
    for name in ("realsense/0001.png", "frame_depth_mm.png", "orbbec_7.png"):
        depth_map = decode(png(millimetres), camera, name=name)
        np.testing.assert_allclose(depth_map.depth_m, true_m, atol=2e-3)
        assert depth_map.taken_as == f"metric, by the file name '{name}'"
    for name in ("0001_disp.png", "disp_occ_0/000000_10.png", "kitti_disparity.png"):
        depth_map = decode(png(disparity), camera, name=name)
        assert order(depth_map.depth_m, true_m) > 0.99, name


def test_a_large_map_gets_the_same_decision() -> None:
    large = np.kron(field(), np.ones((12, 12))).astype(np.float32)
    assert from_array(large, camera_of(large)).is_metric


@pytest.mark.parametrize(
    ("name", "format_", "unit_m"),
    [
        ("a/photo_disp.png", "inverse-relative", 1.0),
        ("disparity/0001.npy", "inverse-relative", 1.0),
        ("photo.inv_depth.npy", "inverse-relative", 1.0),
        ("depth_mm.png", "metric", 0.001),
        ("scene-depth-cm.exr", "metric", 0.01),
        ("photo.depth_m.npy", "metric", 1.0),
        ("depth in.png", None, 1.0),
        ("2011_kitti_0005.png", "metric", 1 / 256),
        ("photo.kitti.png", "metric", 1 / 256),
        ("zoedepth_out.png", "metric", 1 / 256),
        ("rgbd_freiburg1.png", "metric", 1 / 5000),
        ("lidar_sensor_64x48.npy", "metric", 0.001),
        ("photo_vis.png", "", 1.0),
        ("room_relative.png", "", 1.0),
        ("photo.depth.png", None, 1.0),
        ("IMG_50mm_depth.png", None, 1.0),
        ("depths/photo.png", None, 1.0),
        ("display.png", None, 1.0),
    ],
)
def test_file_names_say_what_integers_are(name: str, format_: str | None, unit_m: float) -> None:
    stated = from_file_name(name, is_integer=True)
    assert (None if stated is None else stated.format) == format_
    assert stated is None or stated.unit_m == unit_m


def test_a_file_name_of_a_picture_is_never_metres() -> None:
    millimetres = (room() * 1000).astype(np.uint16)
    assert decode(png(millimetres), camera_of(millimetres)).is_metric
    with pytest.raises(DepthError, match=r"are no metres by the file name 'room_vis\.png'"):
        decode(png(millimetres), camera_of(millimetres), name="room_vis.png")


def test_the_name_of_a_sensor_settles_floats_but_no_grey_of_8_bits() -> None:
    ramp = np.linspace(1, 4, 48 * 64, dtype=np.float32).reshape(48, 64)
    depth_map = decode(npy(ramp), camera_of(ramp), name="lidar_sensor_64x48.npy")
    np.testing.assert_array_equal(depth_map.depth_m, ramp)
    with pytest.raises(DepthError, match="integers of 8 bits"):
        decode(png((ramp * 60).astype(np.uint8)), camera_of(ramp), name="lidar_sensor_64x48.png")


@pytest.mark.parametrize(
    ("text", "format_", "unit_m"),
    [
        ("depth in mm", "metric", 0.001),
        ("Depth map, z in centimeters", "metric", 0.01),
        ("units: m", "metric", 1.0),
        ('<Item name="UNITTYPE" sample="0" role="unittype">m</Item>', "metric", 1.0),
        ("depth_unit=mm", "metric", 0.001),
        ("A disparity map", "inverse-relative", 1.0),
        ("inverse depth in m", "inverse-relative", 1.0),
    ],
)
def test_texts_in_headers_name_units(text: str, format_: str, unit_m: float) -> None:
    stated = from_text(text)
    assert stated is not None
    assert (stated.format, stated.unit_m) == (format_, unit_m)


@pytest.mark.parametrize("text", ["", "a photograph of a room", "united kingdom", "made in Munich", "unit: inch"])
def test_other_texts_say_nothing(text: str) -> None:
    assert from_text(text) is None


def test_headers_of_png_and_tiff_are_read() -> None:
    """The crowd has no surface that tells; the texts do. GDAL names its value of unknown pixels, too."""
    true_m = crowd()
    camera = camera_of(true_m)
    millimetres = (true_m * 1000).astype(np.uint16)
    text = PngInfo()
    text.add_text("Description", "depth in mm")
    file = io.BytesIO()
    Image.fromarray(millimetres).save(file, "PNG", pnginfo=text)
    np.testing.assert_allclose(decode(file.getvalue(), camera).depth_m, true_m, atol=2e-3)
    floats = (true_m * 100).astype(np.float32)
    floats[:10] = -9999
    file = io.BytesIO()
    tags = {270: "units: cm", 42113: "-9999"}
    Image.fromarray(floats).save(file, "TIFF", tiffinfo=tags)
    depth_map = decode(file.getvalue(), camera)
    assert depth_map.taken_as == "metric, by 'units: cm' in its header"
    np.testing.assert_allclose(depth_map.depth_m[10:], true_m[10:], rtol=1e-5)
    assert np.isnan(depth_map.depth_m[:10]).all()


def test_a_disparity_of_middlebury_is_recognised_by_its_scale() -> None:
    true_m = crowd()
    disparity = (100 / true_m).astype(np.float32)
    content = pfm(disparity).replace(b"\n-1.0\n", b"\n-0.003922\n", 1)
    assert order(decode(content, camera_of(true_m)).depth_m, true_m) > 0.99
    with pytest.raises(DepthError):
        decode(pfm(disparity), camera_of(true_m))
    contrary = pfm(room().astype(np.float32)).replace(b"\n-1.0\n", b"\n-0.003922\n", 1)
    with pytest.raises(DepthError, match="look like metres, though the map would be disparity by its scale"):
        decode(contrary, camera_of(true_m))


def test_depth_of_unreal_engine_is_in_centimetres(tmp_path: Path) -> None:
    true_m = crowd().astype(np.float32)
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage, "unreal/jobName": "shot"}
    with OpenEXR.File(header, {"FinalImageMovieRenderQueue_WorldDepth.R": true_m * 100}) as file:
        file.write(str(tmp_path / "made.exr"))
    depth_map = decode((tmp_path / "made.exr").read_bytes(), camera_of(true_m))
    np.testing.assert_allclose(depth_map.depth_m, true_m, rtol=1e-5)


def test_a_map_of_colmap_is_metric(tmp_path: Path) -> None:
    """COLMAP's own script writes `width&height&channels&`, then the array with its first axis fastest."""
    true_m = crowd().astype(np.float32)
    height, width = true_m.shape
    transposed = true_m.T.reshape(width, height, 1).flatten(order="F")
    content = f"{width}&{height}&1&".encode() + transposed.astype("<f4").tobytes()
    depth_map = decode(content, camera_of(true_m))
    assert depth_map.is_metric
    np.testing.assert_array_equal(depth_map.depth_m, true_m)
    for broken in (content[:-4], content.replace(b"&1&", b"&3&", 1)):
        with pytest.raises(DepthError, match="COLMAP array"):
            decode(broken, camera_of(true_m))

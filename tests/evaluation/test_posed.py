"""Folders of posed images against the pinhole formula, written out independently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from sharp_cog.errors import InputError
from sharp_cog.evaluation import posed

# Camera to world in OpenGL axes: x right, y up, z backward.
POSES = [np.eye(4) for _ in range(3)]
POSES[0][:3, 3] = [1.0, 2.0, 3.0]
POSES[0][:3, :3] = Rotation.from_euler("yxz", [30, 10, 5], degrees=True).as_matrix()
POSES[1][:3, 3] = [1.2, 2.1, 2.9]
POSES[1][:3, :3] = Rotation.from_euler("yxz", [25, 12, -5], degrees=True).as_matrix()
CAMERA: dict[str, Any] = {"w": 64, "h": 48, "fl_x": 60.0, "fl_y": 66.0, "cx": 30.5, "cy": 26.0}


def description(**changes: Any) -> dict[str, Any]:
    frames: list[dict[str, Any]] = [
        {"file_path": f"images/{number}.png", "transform_matrix": pose.tolist()} for number, pose in enumerate(POSES)
    ]
    frames[2]["fl_x"] = 70.0
    return {**CAMERA, "frames": frames, **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(tmp_path / f"images/{number}.png")
    write(tmp_path, description())
    return tmp_path


def write(folder: Path, about: object) -> None:
    (folder / "transforms.json").write_text(json.dumps(about))


def pixel(pose: NDArray[np.float64], camera: dict[str, Any], world: NDArray[np.float64]) -> NDArray[np.float64]:
    """Project points (n, 3) by the pinhole formula of OpenGL cameras."""
    x, y, z = pose[:3, :3].T @ (world - pose[:3, 3]).T
    return np.stack([camera["cx"] + camera["fl_x"] * x / -z, camera["cy"] - camera["fl_y"] * y / -z], axis=1)


def test_a_pixel_of_the_photograph_goes_where_the_pinhole_formula_says(folder: Path) -> None:
    case = posed.read(folder, max_views=5, width=64)
    assert (case.focal_length_px, case.depth) == (60.0, None)
    assert [view.name for view in case.views] == ["0.png", "1.png", "2.png"]
    rng = np.random.default_rng(1)
    seen = rng.uniform([-0.4, -0.3, 1.0], [0.4, 0.3, 3.0], (20, 3)) * [1, 1, -1]
    world = seen @ POSES[0][:3, :3].T + POSES[0][:3, 3]
    # The splat's points: those that a camera with square pixels and a centred principal point sees in the same pixel.
    depth = -seen[:, 2]
    in_photograph = pixel(POSES[0], CAMERA, world)
    splat = np.column_stack([(in_photograph - [32, 24]) / 60.0 * depth[:, None], depth, np.ones(20)])
    for view, pose, camera in zip(case.views, POSES, [CAMERA, CAMERA, {**CAMERA, "fl_x": 70.0}], strict=True):
        x, y, z, _ = view.view.world_to_camera @ splat.T
        focal = view.view.focal_length_px
        shown = np.stack([view.view.width / 2 + focal * x / z, view.view.height / 2 + focal * y / z], axis=1)
        np.testing.assert_allclose(shown, pixel(pose, camera, world), atol=1e-9)


def test_views_are_chosen_evenly_and_made_smaller(folder: Path) -> None:
    case = posed.read(folder / "transforms.json", source="images/1.png", max_views=1, width=32)
    assert (case.name, [view.name for view in case.views]) == ("1.png", ["1.png", "0.png"])
    truth = case.views[1].truth()
    assert truth.shape == (24, 32, 3)
    whole = np.asarray(Image.open(folder / "images/0.png"), dtype=float)
    # Rounded once for each direction.
    np.testing.assert_allclose(truth, whole.reshape(24, 2, 32, 2, 3).mean(axis=(1, 3)), atol=1.01)
    assert case.views[1].view.focal_length_px == 30.0


def test_depth_is_in_thousandths_unless_the_file_says_otherwise(folder: Path) -> None:
    values = np.full((48, 64), 2500, dtype=np.uint16)
    values[0, 0] = 0
    Image.fromarray(values).save(folder / "depth.png")
    about = description()
    about["frames"][0]["depth_file_path"] = "depth.png"
    write(folder, about)
    depth = posed.read(folder, max_views=1, width=64).depth
    assert depth is not None
    assert np.isnan(depth[0, 0])
    assert depth[1, 1] == pytest.approx(2.5)
    write(folder, {**about, "depth_unit_scale_factor": 0.01})
    depth = posed.read(folder, max_views=1, width=64).depth
    assert depth is not None
    assert depth[1, 1] == pytest.approx(25.0)


def test_a_field_of_view_and_names_without_a_suffix_are_understood(folder: Path) -> None:
    about = description(camera_angle_x=2 * np.arctan(0.5))
    for name in ("fl_x", "fl_y", "cx", "cy"):
        del about[name]
    for number, frame in enumerate(about["frames"]):
        frame["file_path"] = f"./images/{number}"
    del about["frames"][2]["fl_x"]
    write(folder, about)
    case = posed.read(folder, max_views=5, width=64)
    assert case.focal_length_px == pytest.approx(64.0)
    assert case.views[2].truth().shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": []}, "no list 'frames' of at least two"),
        ({"k1": 0.1}, "frame 0 has the lens distortion k1: undistort"),
        ({"camera_model": "OPENCV_FISHEYE"}, "'OPENCV_FISHEYE': undistort"),
        ({"w": 65}, "has 64x48 pixels, but its camera 65x48"),
        ({"fl_x": None}, "has None for 'fl_x': give a number"),
        ({"fl_x": -5}, "has -5 for 'fl_x': give a positive number"),
    ],
)
def test_what_is_no_pinhole_camera_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    write(folder, description(**changes))
    with pytest.raises(InputError, match=message):
        posed.read(folder, max_views=5, width=64)


def test_broken_folders_are_refused_with_the_remedy(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has 0 images with the name 'x\.png': give the file_path of one"):
        posed.read(folder, source="x.png", max_views=5, width=64)
    about = description()
    about["frames"][1]["transform_matrix"] = (2 * np.eye(4)).tolist()
    write(folder, about)
    with pytest.raises(InputError, match="frame 1 has a 'transform_matrix' that is no rotation"):
        posed.read(folder, max_views=5, width=64)
    about["frames"][1]["transform_matrix"] = "x"
    write(folder, about)
    with pytest.raises(InputError, match="frame 1 has no 'transform_matrix' of 4 x 4 numbers"):
        posed.read(folder, max_views=5, width=64)
    (folder / "transforms.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        posed.read(folder, max_views=5, width=64)
    with pytest.raises(InputError, match="cannot be read"):
        posed.read(tmp_path / "none", max_views=5, width=64)

"""Camera paths and films, read back by Pillow and ffmpeg."""

from __future__ import annotations

from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from sharp_cog import formats
from sharp_cog.cli import main
from sharp_cog.config.options import OutputOptions
from sharp_cog.errors import OptionError
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.preview import movie
from sharp_cog.preview.path import PATHS, camera_path

CAMERA = Camera(width=96, height=64, focal_length_px=80.0)


def wall(depth_m: float = 2.0) -> Gaussians:
    """A wall across the view: red on its left half, green on its right."""
    x, y = torch.meshgrid(torch.linspace(-2, 2, 81), torch.linspace(-1.4, 1.4, 57), indexing="ij")
    num = x.numel()
    red = (x.flatten() < 0).float()
    return Gaussians(
        means=torch.stack([x.flatten(), y.flatten(), torch.full((num,), depth_m)], dim=-1),
        scales=torch.full((num, 3), 0.05),
        quaternions_wxyz=torch.tensor([1.0, 0, 0, 0]).expand(num, 4),
        colors_linear=torch.stack([red, 1 - red, torch.zeros(num)], dim=-1),
        opacities=torch.full((num,), 0.9),
    )


@pytest.mark.parametrize("kind", PATHS)
def test_paths_keep_the_focus_in_the_centre_and_the_camera_upright(kind: str) -> None:
    poses = camera_path(kind, num_frames=16, camera=CAMERA, near_m=1.0, focus_m=3.0, reach=0.08)
    assert poses.shape == (16, 4, 4)
    for pose in poses:
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
        assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
        focus = pose @ np.array([0, 0, 3.0, 1])
        assert focus[2] > 0
        np.testing.assert_allclose(focus[:2], 0, atol=1e-12)
        assert pose[0, 1] == pytest.approx(0)  # The camera's x axis stays level.
    positions = np.array([-pose[:3, :3].T @ pose[:3, 3] for pose in poses])
    # At 1 m, a step of this length is 8 % of the picture's diagonal.
    side_m = 0.08 * np.hypot(96, 64) / 80
    assert np.abs(positions[:, :2]).max() == pytest.approx(side_m, rel=0.05)


def test_no_reach_is_the_photographs_own_view() -> None:
    poses = camera_path("rotate", num_frames=3, camera=CAMERA, near_m=1.0, focus_m=3.0, reach=0.0)
    np.testing.assert_allclose(poses, np.broadcast_to(np.eye(4), (3, 4, 4)), atol=1e-12)


def test_still_is_upright_and_not_mirrored() -> None:
    picture = movie.still(wall(), CAMERA, width=96)
    assert picture.shape == (64, 96, 3)
    left, right = picture[32, 20].astype(int), picture[32, 76].astype(int)
    assert left[0] > 200 > 50 > left[1]
    assert right[1] > 200 > 50 > right[0]


def test_frames_move_and_depth_is_coloured() -> None:
    shot = movie.Shot(path="swipe", duration_s=0.5, fps=8, width=96)
    pictures, depths = zip(*movie.frames(wall(), CAMERA, shot), strict=True)
    assert len(pictures) == shot.num_frames == 4
    assert pictures[0].shape == (64, 96, 3)
    assert not np.array_equal(pictures[0], pictures[-1])
    assert depths[0].any()


def test_stereo_is_twice_as_wide_and_its_halves_differ() -> None:
    shot = movie.Shot(path="rotate", duration_s=0.1, fps=10, width=96, is_stereo=True)
    ((picture, _),) = movie.frames(wall(), CAMERA, shot)
    assert picture.shape == (64, 192, 3)
    # The left eye sees the edge of red and green farther right.
    left_edge, right_edge = (int((half[32, :, 0] > half[32, :, 1]).sum()) for half in np.split(picture, 2, axis=1))
    assert left_edge > right_edge


@pytest.fixture
def splat(tmp_path: Path) -> Path:
    return formats.write(tmp_path / "wall.ply", wall(), CAMERA, OutputOptions())


def test_the_command_writes_an_animated_webp_with_its_depth(splat: Path) -> None:
    output = splat.with_suffix(".webp")
    arguments = ["render", str(splat), "-o", str(output), "--duration", "0.5", "--fps", "10", "--width", "96"]
    assert main([*arguments, "--depth"]) == 0
    with Image.open(output) as film:
        assert film.size == (96, 64)
        num_frames: int = film.n_frames  # type: ignore[attr-defined]
        assert 2 <= num_frames <= 5  # Pillow joins frames that are the same.
    with Image.open(splat.with_name("wall.depth.webp")) as film:
        assert film.size == (96, 64)


def test_the_command_writes_an_mp4(splat: Path) -> None:
    assert main(["render", str(splat), "--duration", "0.5", "--fps", "12", "--width", "96"]) == 0
    frames = imageio_ffmpeg.read_frames(str(splat.with_suffix(".mp4")))
    about = next(frames)
    assert about["size"] == (96, 64)
    assert about["fps"] == 12
    pictures = list(frames)
    assert len(pictures) == 6
    first = np.frombuffer(pictures[0], np.uint8).reshape(64, 96, 3)
    assert first[32, 15, 0] > 150 > first[32, 15, 1]
    assert sorted(path.name for path in splat.parent.iterdir()) == ["wall.mp4", "wall.ply"]


def test_the_command_writes_a_picture(splat: Path) -> None:
    assert main(["render", str(splat), "-o", str(splat.with_suffix(".png")), "--width", "96"]) == 0
    with Image.open(splat.with_suffix(".png")) as picture:
        np.testing.assert_array_equal(picture, movie.still(wall(), CAMERA, width=96))


@pytest.mark.parametrize(
    "arguments", [["-o", "film.avi"], ["--path", "spiral"], ["--fps", "0"], ["--width", "100000"], ["--duration", "-1"]]
)
def test_bad_options_are_exit_code_2(splat: Path, arguments: list[str]) -> None:
    assert main(["render", str(splat), *arguments]) == 2


def test_a_video_of_another_suffix_is_refused() -> None:
    with pytest.raises(OptionError, match=r"\.mp4 or \.webp"):
        movie.MovieWriter(Path("film.gif"), fps=10)

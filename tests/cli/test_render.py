from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from sharp_cog import formats
from sharp_cog.config.options import OutputOptions
from tests.cli.commands import names, run
from tests.splats import CAMERA, random_gaussians

BEHIND = Path(__file__).parents[1] / "data" / "splats" / "spz4_by_splat_transform_3.7.0_RDF.spz"
SHORT = ("--duration", 0.3, "--fps", 10, "--width", 64, "--range", 0.02)


@pytest.fixture
def splat(tmp_path: Path) -> Path:
    gaussians = random_gaussians(300)
    gaussians.means[:, 2].abs_().add_(1.0)
    return formats.write(tmp_path / "room.ply", gaussians, CAMERA, OutputOptions())


@pytest.mark.parametrize("name", ["room.compressed.ply", "room.splat", "room.spz"])
def test_every_format_that_is_read_can_be_rendered(splat: Path, tmp_path: Path, name: str) -> None:
    assert run("convert", splat, tmp_path / name) == 0
    assert run("render", tmp_path / name, "-o", tmp_path / "view.png", "--width", 96) == 0
    assert np.asarray(Image.open(tmp_path / "view.png")).any()


def test_a_video_is_written_beside_the_splat(splat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("render", splat, *SHORT) == 0
    assert imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "room.mp4"))[0] == 3
    assert "room.mp4: 3 frames" in capsys.readouterr().out


def test_the_camera_path_its_range_and_the_axes_change_the_video(splat: Path, tmp_path: Path) -> None:
    variants: dict[str, tuple[object, ...]] = {
        "plain": (),
        "path": ("--path", "swipe"),
        "range": ("--range", 0.2),
        "axes": ("--input-axes", "opengl"),
    }
    for name, flags in variants.items():
        assert run("render", splat, "-o", tmp_path / f"{name}.webp", *SHORT, *flags) == 0
    assert len({(tmp_path / f"{name}.webp").read_bytes() for name in variants}) == len(variants)


def test_a_black_image_is_refused_unless_the_axes_are_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """splat-transform writes .spz in the axes of a .ply, and nothing in the file says so."""
    for name in ("view.png", "view.webp"):
        assert run("render", BEHIND, "-o", tmp_path / name, *SHORT) == 2
        captured = capsys.readouterr().err
        assert "nothing lies ahead of the camera (z is from -5 to -2 m)" in captured
        assert "error: none of the 2000 Gaussians is in the camera's view" in captured
        assert "name them with --input-axes (opencv or opengl)" in captured
    assert names(tmp_path) == []
    assert run("render", BEHIND, "-o", tmp_path / "view.png", "--input-axes", "opencv") == 0
    assert capsys.readouterr().err.count("warning") == 0
    assert np.asarray(Image.open(tmp_path / "view.png")).any()
    assert run("render", BEHIND, "-o", tmp_path / "black.png", "--input-axes", "opengl") == 0
    assert "with the axes opengl: the image is black" in capsys.readouterr().err


def test_stereo_and_depth(splat: Path, tmp_path: Path) -> None:
    assert run("render", splat, "-o", tmp_path / "room.webp", *SHORT, "--stereo", "--depth") == 0
    assert names(tmp_path) == ["room.depth.webp", "room.ply", "room.webp"]
    with Image.open(tmp_path / "room.webp") as film:
        assert (film.size[0], getattr(film, "n_frames", 1)) == (128, 3)


def test_what_cannot_be_rendered_is_reported(splat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("render", splat, "-o", tmp_path / "room.avi") == 2
    assert "has no suffix of .mp4, .webp, .png" in capsys.readouterr().err
    assert run("render", splat, "--fps", 0) == 2
    assert run("render", tmp_path / "none.ply") == 2
    assert names(tmp_path) == ["room.ply"]

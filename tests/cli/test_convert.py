"""The command line's formats: predict into each, convert between them, render and info of what was written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sharp_cog import formats
from sharp_cog.cli import main
from sharp_cog.config.options import OutputOptions
from sharp_cog.formats import FORMATS
from sharp_cog.formats.read_ply import read_ply
from tests.splats import CAMERA, random_gaussians

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHARP_VIEWER_DIR", raising=False)


@pytest.fixture
def splat(tmp_path: Path) -> Path:
    gaussians = random_gaussians(300)
    gaussians.means[:, 2].abs_().add_(1.0)
    return formats.write(tmp_path / "room.ply", gaussians, CAMERA, OutputOptions())


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("name", ["room.sog", "room.spz", "room.glb", "room.compressed.ply", "room.splat"])
def test_predict_takes_the_format_from_the_outputs_name(name: str, tmp_path: Path) -> None:
    target = tmp_path / name
    room = [EXAMPLES / "room.jpg", "--model", "lift", "--depth", EXAMPLES / "room.depth.png"]
    assert run("predict", *room, "-o", target, "--max-gaussians", 5000) == 0
    written = formats.format_of(target)
    if written in ("sog", "glb"):
        assert target.read_bytes()[:4] == {"sog": b"PK\x03\x04", "glb": b"glTF"}[written]
    else:
        assert formats.detect(target.read_bytes(), target) == written
        assert len(formats.read(target).gaussians) == 5000


def test_a_preview_lies_beside_the_splat_and_is_no_picture_for_the_next_run(tmp_path: Path) -> None:
    folder = tmp_path / "holiday"
    folder.mkdir()
    (folder / "room.jpg").write_bytes((EXAMPLES / "room.jpg").read_bytes())
    options = ["--model", "lift", "--depth", EXAMPLES / "room.depth.png", "--max-gaussians", 20000]
    assert run("predict", folder, *options, "--preview") == 0
    assert sorted(path.name for path in folder.iterdir()) == ["room.jpg", "room.ply", "room.preview.webp"]
    with Image.open(folder / "room.preview.webp") as film:
        assert (film.format, film.size, getattr(film, "n_frames", 1)) == ("WEBP", (384, 256), 30)
    assert run("predict", folder, *options) == 0
    assert not (folder / "room.preview.ply").exists()


def test_options_that_a_format_cannot_have_are_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("predict", EXAMPLES / "room.jpg", "--format", "glb", "--axes", "opencv", "-o", tmp_path) == 2
    assert "axes is 'opencv', but glb always has opengl" in capsys.readouterr().err
    assert run("predict", EXAMPLES / "room.jpg", "--format", "mp4", "--center", "-o", tmp_path) == 2
    assert "center is given" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_convert_there_and_back(splat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("room.compressed.ply", "room.splat", "room.spz", "room.sog", "room.glb"):
        assert run("convert", splat, tmp_path / name) == 0
        assert f"{name}: 300 of 300 Gaussians" in capsys.readouterr().out
    heights = np.sort(formats.read(splat).gaussians.means[:, 1].numpy())
    for name in ("room.compressed.ply", "room.splat", "room.spz"):
        assert run("convert", tmp_path / name, tmp_path / "back.ply") == 0
        back = np.sort(formats.read(tmp_path / "back.ply").gaussians.means[:, 1].numpy())
        np.testing.assert_allclose(back, heights, atol=0.02)


def test_convert_keeps_places_and_turns(splat: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.ply"
    options = ["--max-gaussians", 100, "--min-opacity", 0.2, "--scale", 3, "--center", "--axes", "opengl"]
    assert run("convert", splat, target, *options) == 0
    header = target.read_bytes().partition(b"end_header")[0].decode()
    assert "axes opengl" in header
    assert "camera_position" in header
    assert "element vertex 100" in header
    raw = read_ply(target.read_bytes()).gaussians
    np.testing.assert_allclose(np.median(raw.means.numpy(), axis=0), 0, atol=0.5)
    back = formats.read(target).gaussians
    whole = formats.read(splat).gaussians.means.numpy() * 3
    assert max(float(np.abs(whole - mean).max(axis=1).min()) for mean in back.means.numpy()) < 1e-4
    assert back.opacities.min() >= 0.2 - 1e-6


def test_convert_to_apples_layout_assumes_a_camera_where_none_is_known(
    splat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("convert", splat, tmp_path / "room.splat") == 0
    assert run("convert", tmp_path / "room.splat", tmp_path / "apple.ply", "--format", "apple_ply") == 0
    assert "a 30 mm equivalent, 3:2, is assumed" in capsys.readouterr().err
    assert run("convert", tmp_path / "room.splat", tmp_path / "plain.ply") == 0
    assert "assumed" not in capsys.readouterr().err
    assert formats.read(tmp_path / "plain.ply").camera is None


def test_convert_says_what_is_wrong(splat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases: dict[str, list[object]] = {
        "is the splat that is read": [splat, splat],
        "has no suffix of .ply": [splat, tmp_path / "room.obj"],
        "cannot be read": [tmp_path / "none.ply", tmp_path / "out.sog"],
        "can be written but not read": [tmp_path / "room.sog", tmp_path / "out.ply"],
        "is not a .ply, .compressed.ply, .splat or .spz": [EXAMPLES / "room.jpg", tmp_path / "out.ply"],
        "give a number from 1e-06": [splat, tmp_path / "out.ply", "--scale", "0"],
    }
    assert run("convert", splat, tmp_path / "room.sog") == 0
    before = splat.read_bytes()
    for message, arguments in cases.items():
        assert run("convert", *arguments) == 2
        assert message in capsys.readouterr().err
    assert splat.read_bytes() == before
    assert not (tmp_path / "out.ply").exists()


def test_axes_of_what_is_read_can_be_told(splat: Path, tmp_path: Path) -> None:
    assert run("convert", splat, tmp_path / "up.splat", "--axes", "opengl") == 0
    assert run("convert", tmp_path / "up.splat", tmp_path / "down.ply", "--input-axes", "opengl") == 0
    ours, back = (formats.read(path).gaussians.means[:, 1].sort().values for path in (splat, tmp_path / "down.ply"))
    np.testing.assert_allclose(back, ours, atol=1e-5)


def test_info_and_render_of_every_format_that_is_read(
    splat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, known in (("a.compressed.ply", "compressed_ply"), ("a.splat", "splat"), ("a.spz", "spz")):
        path = tmp_path / name
        assert run("convert", splat, path) == 0
        capsys.readouterr()
        assert run("info", path, "--json") == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["format"], report["num_gaussians"]) == (known, 300)
        assert report["depth_m_quantiles"]["0%"] > 0.9
        assert run("render", path, "-o", tmp_path / "view.png", "--width", 96) == 0
        assert np.asarray(Image.open(tmp_path / "view.png")).any()


def test_a_film_is_a_format(splat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import imageio_ffmpeg

    from sharp_cog.preview import movie

    monkeypatch.setattr(movie, "FILM", movie.Shot(duration_s=0.2, fps=10, width=64))
    assert run("convert", splat, tmp_path / "room.mp4") == 0
    frames, _ = imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "room.mp4"))
    assert frames == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["room.mp4", "room.ply"]


def test_help_names_every_format(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("predict", "convert"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        said = capsys.readouterr().out
        assert all(name in said for name in FORMATS)

from __future__ import annotations

import json
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from sharp_cog import formats
from sharp_cog.config.options import OutputOptions
from sharp_cog.formats.ply import read_ply
from sharp_cog.geometry.simplify import simplify
from tests.cli.commands import names, run
from tests.formats.cases import written
from tests.splats import CAMERA, random_gaussians

DATA = Path(__file__).parents[1] / "data" / "splats"
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def splat(tmp_path: Path) -> Path:
    gaussians = random_gaussians(300)
    gaussians.means[:, 2].abs_().add_(1.0)
    return formats.write(tmp_path / "room.ply", gaussians, CAMERA, OutputOptions())


def test_a_splat_can_be_converted_there_and_back(
    splat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("room.compressed.ply", "room.splat", "room.spz", "room.sog", "room.glb"):
        assert run("convert", splat, tmp_path / name) == 0
        assert f"{name}: 300 of 300 Gaussians" in capsys.readouterr().out
    heights = np.sort(formats.read(splat).gaussians.means[:, 1].numpy())
    for name in ("room.compressed.ply", "room.splat", "room.spz"):
        assert run("convert", tmp_path / name, tmp_path / "back.ply") == 0
        back = np.sort(formats.read(tmp_path / "back.ply").gaussians.means[:, 1].numpy())
        np.testing.assert_allclose(back, heights, atol=0.02)


def test_convert_simplifies_scales_centers_and_changes_axes(splat: Path, tmp_path: Path) -> None:
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
    merged = simplify(formats.read(splat).gaussians, max_gaussians=100, min_opacity=0.2)
    np.testing.assert_allclose(back.means, merged.means * 3, atol=1e-4)
    np.testing.assert_allclose(back.opacities, merged.opacities, atol=1e-5)


def test_convert_tells_what_it_drops_on_stderr(splat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = DATA / "sh3.compressed.ply"
    assert run("convert", trained, tmp_path / "trained.ply") == 0
    assert capsys.readouterr().err == ""
    assert formats.read(tmp_path / "trained.ply").gaussians.degree == 3
    assert run("convert", trained, tmp_path / "flat.splat") == 0
    assert f"warning: {tmp_path / 'flat.splat'}: spherical harmonics of degree 1 to 3 are dropped" in (
        capsys.readouterr().err
    )
    assert run("convert", trained, tmp_path / "low.ply", "--sh-degree", 1) == 0
    assert "spherical harmonics of degree 2 to 3 are dropped" in capsys.readouterr().err
    assert formats.read(tmp_path / "low.ply").gaussians.degree == 1
    assert run("convert", splat, tmp_path / "room.spz") == 0
    assert "spz has no place for the photograph's camera (1200 x 800, focal length 1150 px)" in capsys.readouterr().err
    assert run("convert", splat, tmp_path / "room.spz", "--sh-degree", 5) == 2
    assert run("convert", splat, tmp_path / "room.splat", "--normals") == 2
    assert "--normals" not in capsys.readouterr().out


def test_axes_that_are_converted_are_written_down(
    splat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, axes in (("a.ply", "opengl"), ("a.compressed.ply", "opengl"), ("a.spz", "opencv")):
        assert run("convert", splat, tmp_path / name, "--axes", axes) == 0
        capsys.readouterr()
        assert run("info", tmp_path / name, "--json") == 0
        report = json.loads(capsys.readouterr().out)
        assert report["depth_m_quantiles"]["0%"] >= 0.99
        assert report["notes"] == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_bad_gaussian_can_be_dropped(value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, content = tmp_path / "bad.ply", written("ply", random_gaussians(7))
    source.write_bytes(content[:-20] + np.float32(value).tobytes() + content[-16:])  # A scale.
    assert run("convert", source, tmp_path / "good.ply") == 2
    assert "1 of 7 Gaussians have values that are not finite, in scales: set --drop-invalid" in capsys.readouterr().err
    assert run("convert", source, tmp_path / "good.ply", "--drop-invalid") == 0
    captured = capsys.readouterr()
    assert "1 of 7 Gaussians are dropped: values that are not finite, in scales" in captured.err
    assert "6 of 6 Gaussians" in captured.out


def test_convert_to_apples_layout_assumes_a_camera_where_none_is_known(
    splat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("convert", splat, tmp_path / "room.splat") == 0
    assert run("convert", tmp_path / "room.splat", tmp_path / "apple.ply", "--format", "apple_ply") == 0
    assert "a 30 mm equivalent, 3:2, is assumed" in capsys.readouterr().err
    assert run("convert", tmp_path / "room.splat", tmp_path / "plain.ply") == 0
    assert "assumed" not in capsys.readouterr().err
    assert formats.read(tmp_path / "plain.ply").camera is None


def test_errors_of_convert_name_the_cause_and_leave_the_source_alone(
    splat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "room.html").write_text("<!doctype html>")
    before = splat.read_bytes()
    cases: dict[str, list[object]] = {
        "is the splat that is read": [splat, splat],
        "has no suffix of .ply": [splat, tmp_path / "room.obj"],
        "cannot be read": [tmp_path / "none.ply", tmp_path / "out.sog"],
        "can be written but not read": [tmp_path / "room.html", tmp_path / "out.ply"],
        "use .ply, .compressed.ply, .splat, .spz, .sog, .glb, .usdz, .ksplat": [
            EXAMPLES / "room.jpg",
            tmp_path / "out.ply",
        ],
        "give a number from 1e-06": [splat, tmp_path / "out.ply", "--scale", "0"],
    }
    for message, arguments in cases.items():
        assert run("convert", *arguments) == 2
        assert message in capsys.readouterr().err
    assert splat.read_bytes() == before
    assert names(tmp_path) == ["room.html", "room.ply"]


def test_the_axes_of_the_source_can_be_given(splat: Path, tmp_path: Path) -> None:
    assert run("convert", splat, tmp_path / "up.splat", "--axes", "opengl") == 0
    assert run("convert", tmp_path / "up.splat", tmp_path / "down.ply", "--input-axes", "opengl") == 0
    expected, back = (formats.read(path).gaussians.means[:, 1].sort().values for path in (splat, tmp_path / "down.ply"))
    np.testing.assert_allclose(back, expected, atol=1e-5)


@pytest.mark.usefixtures("short_films")
def test_a_splat_can_be_converted_to_a_film(splat: Path, tmp_path: Path) -> None:
    assert run("convert", splat, tmp_path / "room.mp4") == 0
    assert imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "room.mp4"))[0] == 2
    assert names(tmp_path) == ["room.mp4", "room.ply"]


def test_convert_writes_levels_of_detail_and_reads_them(
    splat: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "scene" / "lod-meta.json"
    assert run("convert", splat, target, "--lod", 2) == 0
    assert "lod-meta.json: 300 of 300 Gaussians" in capsys.readouterr().out
    assert json.loads(target.read_text())["counts"] == [300, 75]
    assert run("convert", splat, target) == 0
    assert json.loads(target.read_text())["counts"] == [300, 75, 18, 4]
    assert run("convert", target, tmp_path / "back.ply") == 0
    assert "back.ply: 300 of 300 Gaussians" in capsys.readouterr().out
    assert run("convert", splat, tmp_path / "room.sog", "--lod", 2) == 2
    assert "room.sog is one file: leave it out, or name the output lod-meta.json" in capsys.readouterr().err
    assert run("convert", splat, tmp_path / "room.ply", "--lod", 2) == 2
    assert "name the output lod-meta.json" in capsys.readouterr().err

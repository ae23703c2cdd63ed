import io
import json
from pathlib import Path

import numpy as np
import plyfile
import pytest

from sharp_cog import formats
from sharp_cog.config.options import OutputOptions
from sharp_cog.formats.ply import PROPERTIES
from tests.cli.commands import StubPredictor, run, write_image
from tests.depth.portraits import gdepth_jpeg
from tests.splats import CAMERA, random_gaussians


def test_info_of_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = write_image(tmp_path / "photo.jpg", width=3600, height=2400, equivalent_mm=50)
    assert run("info", photo, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["format"], facts["width"], facts["height"]) == ("JPEG", 3600, 2400)
    assert facts["focal_length_px"] == pytest.approx(5000)
    assert facts["focal_length_source"] == "exif_35mm"
    assert facts["vertical_fov_degrees"] == pytest.approx(27.0, abs=0.05)
    assert run("info", photo) == 0
    printed = capsys.readouterr().out
    assert "width: 3,600" in printed
    assert "5000" in printed


def test_info_of_a_splat(predictor: StubPredictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = write_image(tmp_path / "photo.jpg", width=360, height=240, equivalent_mm=50)
    assert run("predict", photo) == 0
    capsys.readouterr()
    assert run("info", tmp_path / "photo.ply", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["num_gaussians"] == 4
    assert facts["bytes"] == (tmp_path / "photo.ply").stat().st_size
    assert facts["focal_length_px"] == pytest.approx(500)
    # A point at the right lower edge of the frame, 1 m away: half the frame over the focal length.
    assert facts["bounds_m"]["x"] == pytest.approx([0.36, 0.36])
    assert facts["bounds_m"]["y"] == pytest.approx([0.24, 0.24])
    assert facts["bounds_m"]["z"] == pytest.approx([1, 1])
    assert set(facts["opacity_quantiles"].values()) == {0.5}


@pytest.mark.parametrize("suffix", [".compressed.ply", ".splat", ".spz", ".sog", ".glb"])
def test_info_of_every_format_that_is_read(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gaussians = random_gaussians(300)
    gaussians.means[:, 2].abs_().add_(1.0)
    path = tmp_path / f"room{suffix}"
    known = formats.format_of(path)
    formats.write(path, gaussians, CAMERA, OutputOptions(output_format=known))
    assert run("info", path, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["format"], report["num_gaussians"]) == (known, 300)
    assert report["depth_m_quantiles"]["0%"] > 0.9


def test_info_of_a_splat_without_gaussians(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = np.zeros(0, dtype=[(name, "<f4") for name in PROPERTIES])
    file = io.BytesIO()
    plyfile.PlyData([plyfile.PlyElement.describe(empty, "vertex")]).write(file)
    (tmp_path / "empty.ply").write_bytes(file.getvalue())
    assert run("info", tmp_path / "empty.ply") == 0
    assert "num gaussians: 0" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"ply\nbut no more", b"<html>", bytes(100), None])
def test_info_of_any_other_file_is_exit_code_2(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    assert run("info", tmp_path / "file") == 2


def test_info_of_a_photograph_with_depth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "portrait.jpg").write_bytes(gdepth_jpeg())
    assert run("info", tmp_path / "portrait.jpg", "--json") == 0
    depth = json.loads(capsys.readouterr().out)["embedded_depth"]
    assert (depth["kind"], depth["width"], depth["height"]) == ("GDepth map", 96, 64)
    assert (depth["near_m"], depth["far_m"]) == (0.5, 4.0)
    assert run("info", tmp_path / "portrait.jpg") == 0
    assert "embedded depth: kind GDepth map, width 96, height 64, near_m 0.5, far_m 4.0" in capsys.readouterr().out


def test_pillow_does_not_warn_before_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    """The directory of this TIFF promises 16 tags, and two follow."""
    tag = b"\x00\x01\x03\x00\x01\x00\x00\x00\x60\x00\x00\x00"
    (tmp_path / "broken.tif").write_bytes(b"II*\x00\x08\x00\x00\x00\x10\x00" + 2 * tag)
    assert run("info", tmp_path / "broken.tif") == 2
    assert "error: the image is broken or truncated" in capsys.readouterr().err
    assert [str(warning.message) for warning in recwarn] == []

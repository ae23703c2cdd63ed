from pathlib import Path

import pytest

from sharp_cog.cli.splats import camera_of
from sharp_cog.formats import Splat
from tests.splats import CAMERA, random_gaussians


def test_a_camera_that_the_file_has_is_used_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    splat = Splat(gaussians=random_gaussians(1), camera=CAMERA)
    assert camera_of(Path("room.ply"), splat) == CAMERA
    assert capsys.readouterr().err == ""


def test_a_missing_camera_is_assumed_and_reported(capsys: pytest.CaptureFixture[str]) -> None:
    camera = camera_of(Path("room.splat"), Splat(gaussians=random_gaussians(1), camera=None))
    # 30 mm for the diagonal of a full frame, 43.27 mm, on the diagonal of 1200 x 800 pixels.
    assert camera.focal_length_px == pytest.approx(30 / 43.2666 * 1442.22, rel=1e-4)
    assert "room.splat" in capsys.readouterr().err

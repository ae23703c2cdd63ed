"""The camera beside a .ply in INRIA's layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from plyfile import PlyData

from sharp_cog import formats
from sharp_cog.config.options import OutputOptions
from sharp_cog.errors import OptionError
from tests.splats import CAMERA, gaussians_in_front


@pytest.mark.parametrize("axes", ["opencv", "opengl"])
def test_the_camera_projects_the_file_as_the_photograph(axes: str, tmp_path: Path) -> None:
    gaussians, path = gaussians_in_front(20), tmp_path / "room.ply"
    formats.write(path, gaussians, CAMERA, OutputOptions(axes=axes, center=True, cameras_json=True))
    (camera,) = json.loads((tmp_path / "room.cameras.json").read_text())
    assert set(camera) == {"id", "img_name", "width", "height", "position", "rotation", "fx", "fy"}
    assert (camera["width"], camera["height"]) == (1200, 800)
    vertex = PlyData.read(str(path))["vertex"]
    means = np.stack([vertex[axis] for axis in "xyz"], axis=-1)
    # INRIA's rotation is that from the camera to the world.
    seen = (means - camera["position"]) @ np.array(camera["rotation"])
    np.testing.assert_allclose(seen, gaussians.means, atol=1e-4)
    assert camera["fx"] == camera["fy"] == 1150.25


def test_it_is_refused_for_other_formats_and_not_written_unasked(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"cameras_json is given, but sog is no \.ply"):
        OutputOptions(output_format="sog", cameras_json=True)
    formats.write(tmp_path / "room.ply", gaussians_in_front(2), CAMERA, OutputOptions())
    assert [path.name for path in tmp_path.iterdir()] == ["room.ply"]

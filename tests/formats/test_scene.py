from __future__ import annotations

import pytest

from sharp_cog.errors import SplatError
from sharp_cog.formats.scene import PHOTOGRAPH_FRAME, Splat, camera_fields
from tests.formats.cases import FIELDS
from tests.splats import CAMERA, random_gaussians


def test_the_photographs_frame_has_the_camera_at_the_origin() -> None:
    assert PHOTOGRAPH_FRAME.axes == "opencv"
    assert PHOTOGRAPH_FRAME.camera_position == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("field", FIELDS)
def test_a_splat_has_finite_values(field: str) -> None:
    gaussians = random_gaussians(4)
    assert Splat(gaussians=gaussians, camera=CAMERA).frame is None
    getattr(gaussians, field)[1:3] = float("nan")
    with pytest.raises(SplatError, match=rf"\d+ values of {field} that are not finite: it is broken"):
        Splat(gaussians=gaussians, camera=CAMERA)


def test_a_camera_is_stored_as_focal_length_and_size() -> None:
    assert camera_fields(CAMERA) == {"focal_length_px": 1150.25, "image_size": [1200, 800]}

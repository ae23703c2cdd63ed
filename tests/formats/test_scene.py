from __future__ import annotations

from sharp_cog.formats.scene import PHOTOGRAPH_FRAME, camera_fields
from tests.splats import CAMERA


def test_the_photographs_frame_has_the_camera_at_the_origin() -> None:
    assert PHOTOGRAPH_FRAME.axes == "opencv"
    assert PHOTOGRAPH_FRAME.camera_position == (0.0, 0.0, 0.0)


def test_a_camera_is_stored_as_focal_length_and_size() -> None:
    assert camera_fields(CAMERA) == {"focal_length_px": 1150.25, "image_size": [1200, 800]}

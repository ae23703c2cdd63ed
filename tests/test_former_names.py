"""Module names of version 0.1 that scripts still import."""

from sharp_cog import camera, depth, images
from sharp_cog.depth import maps
from sharp_cog.geometry.camera import Camera
from sharp_cog.imaging import images as decoding


def test_modules_of_version_0_1_lead_to_their_successors() -> None:
    assert camera.Camera is Camera
    assert images.decode is decoding.decode
    assert depth.decode is maps.decode

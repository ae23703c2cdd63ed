"""The camera against photographers' tables: the published angles of view of lenses on a 36 x 24 mm frame."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharp_cog.errors import OptionError
from sharp_cog.geometry.camera import Camera, focal_length_px_from_mm


def test_focal_length_on_a_full_frame_shape_is_the_plain_ratio_of_widths() -> None:
    # 36 mm are 3600 px: 100 px a millimetre.
    assert focal_length_px_from_mm(50.0, width=3600, height=2400) == pytest.approx(5000.0)
    assert focal_length_px_from_mm(50.0, width=2400, height=3600) == pytest.approx(5000.0)


def test_focal_length_on_another_shape_goes_by_the_diagonal() -> None:
    # 4:3 with a diagonal of 4000 px, on a frame whose diagonal is 43.27 mm.
    assert focal_length_px_from_mm(28.0, width=3200, height=2400) == pytest.approx(4000 * 28.0 / 43.2666, rel=1e-5)


@pytest.mark.parametrize(
    ("focal_length_mm", "vertical_fov_degrees"), [(14, 81.2), (24, 53.1), (50, 27.0), (85, 16.1), (200, 6.87)]
)
def test_vertical_field_of_view_is_the_published_one(focal_length_mm: float, vertical_fov_degrees: float) -> None:
    focal_length_px = focal_length_px_from_mm(focal_length_mm, width=6000, height=4000)
    camera = Camera(width=6000, height=4000, focal_length_px=focal_length_px)
    assert camera.vertical_fov_degrees == pytest.approx(vertical_fov_degrees, abs=0.05)


def test_disparity_factor_is_focal_length_over_width() -> None:
    assert Camera(width=4000, height=3000, focal_length_px=3000.0).disparity_factor == 0.75


@settings(max_examples=20)
@given(
    width=st.integers(32, 20_000),
    height=st.integers(32, 20_000),
    focal_length_mm=st.floats(1, 5000),
    factor=st.integers(2, 5),
)
def test_field_of_view_does_not_depend_on_resolution(
    width: int, height: int, focal_length_mm: float, factor: int
) -> None:
    fields_of_view = [
        Camera(
            width=width * scale,
            height=height * scale,
            focal_length_px=focal_length_px_from_mm(focal_length_mm, width=width * scale, height=height * scale),
        ).vertical_fov_degrees
        for scale in (1, factor)
    ]
    assert fields_of_view[0] == pytest.approx(fields_of_view[1], rel=1e-9)


@pytest.mark.parametrize("focal_length_px", [0.0, -1.0, math.nan, math.inf])
def test_focal_length_must_be_positive_and_finite(focal_length_px: float) -> None:
    with pytest.raises(OptionError, match=r"focal length is .* px: give a positive number"):
        Camera(width=10, height=10, focal_length_px=focal_length_px)


@pytest.mark.parametrize(("width", "height"), [(0, 10), (10, 0), (-1, 10)])
def test_size_must_be_positive(width: int, height: int) -> None:
    with pytest.raises(OptionError, match=f"camera size is {width}x{height}"):
        Camera(width=width, height=height, focal_length_px=10.0)

"""Depth that photographs carry: each container with the range that it names, turned and cropped with the image."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from numpy.typing import NDArray
from PIL import Image

from sharp_cog.depth import embedded
from sharp_cog.depth.maps import DepthMap
from sharp_cog.errors import DepthError, NotInstalledError
from sharp_cog.imaging import images
from tests.depth import portraits
from tests.depth.portraits import (
    D_MAX,
    D_MIN,
    FAR_M,
    HEIGHT,
    NEAR_M,
    SEI,
    WIDTH,
    apple_jpeg,
    apple_packet,
    cmex,
    cmin,
    dynamic_depth_jpeg,
    full_box,
    gdepth_jpeg,
    heic,
    jpeg,
    true_depth,
)

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
AUXILIARY = full_box(b"auxC", b"urn:mpeg:hevc:2015:auxid:2\0" + SEI)


def taken(content: bytes) -> DepthMap:
    depth_map = embedded.decode(content, images.decode(content))
    assert depth_map is not None
    return depth_map


def assert_is_scene(depth_map: DepthMap, expected: NDArray[Any] | None = None, *, steps: float = 0.6) -> None:
    """Check a map within a number of steps of 8 bits, in disparity, from the true scene."""
    expected = true_depth() if expected is None else expected
    step = (1 / NEAR_M - 1 / FAR_M) / 255
    assert depth_map.depth_m.shape == expected.shape
    np.testing.assert_allclose(1 / depth_map.depth_m, 1 / expected, atol=steps * step)


@pytest.mark.parametrize("units", ["m", "mm"])
@pytest.mark.parametrize("is_extended", [False, True])
def test_gdepth_in_inverse_range_has_its_own_near_and_far(units: str, is_extended: bool) -> None:
    depth_map = taken(gdepth_jpeg(units=units, is_extended=is_extended))
    assert_is_scene(depth_map)
    assert depth_map.is_metric
    assert depth_map.origin == f"GDepth map, {WIDTH}x{HEIGHT}, 0.5 to 4 m"


def test_gdepth_in_linear_range_and_of_16_bits_is_exact() -> None:
    depth_map = taken(gdepth_jpeg("RangeLinear", bits=16))
    np.testing.assert_allclose(depth_map.depth_m, true_depth(), atol=3.5 / 65535)


def test_gdepth_along_rays_becomes_depth_along_the_axis() -> None:
    """Distances of a wall at two metres, before a camera of the default focal length, are depth of two metres."""
    camera = images.decode(jpeg()).camera
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5
    lengths = np.sqrt(1 + ((x - WIDTH / 2) ** 2 + (y - HEIGHT / 2) ** 2) / camera.focal_length_px**2)
    content = gdepth_jpeg("RangeLinear", bits=16, depth=2.0 * lengths, extra='GDepth:MeasureType="OpticRay"')
    np.testing.assert_allclose(taken(content).depth_m, 2.0, atol=1e-3)


@pytest.mark.parametrize("units", ["Meters", "Diopters"])
@pytest.mark.parametrize("trailer", [b"", b"SEFT of another program"])
def test_dynamic_depth_is_found_behind_the_other_pictures(units: str, trailer: bytes) -> None:
    depth_map = taken(dynamic_depth_jpeg(units=units, trailer=trailer))
    assert_is_scene(depth_map)
    assert depth_map.is_metric
    assert depth_map.origin.startswith("Dynamic Depth map")


def test_a_unit_that_is_none_leaves_the_scale_open() -> None:
    depth_map = taken(dynamic_depth_jpeg(units="None"))
    assert not depth_map.is_metric
    assert depth_map.origin.endswith("whose scale is approximate")


@pytest.mark.parametrize("kind", ["disparity", "depth"])
def test_a_portrait_jpeg_has_its_depth_in_a_further_image(kind: str) -> None:
    depth_map = taken(apple_jpeg(kind))
    np.testing.assert_allclose(1 / depth_map.depth_m, 1 / true_depth(), atol=0.06)
    assert depth_map.is_metric
    assert depth_map.origin.startswith(f"{kind} of an Apple portrait")
    assert depth_map.focal_length_px == pytest.approx(3000 * WIDTH / 4032)
    assert not taken(apple_jpeg(kind, accuracy="relative")).is_metric


TURNS = {
    1: lambda depth: depth,
    2: lambda depth: depth[:, ::-1],
    3: lambda depth: depth[::-1, ::-1],
    4: lambda depth: depth[::-1],
    5: lambda depth: depth.T,
    6: lambda depth: np.rot90(depth, -1),
    7: lambda depth: np.rot90(depth.T, 2),
    8: lambda depth: np.rot90(depth),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_the_depth_is_turned_like_the_image(orientation: int) -> None:
    """The right end of the stored scene is far, and goes where EXIF's orientation puts it."""
    depth_map = taken(apple_jpeg(orientation=orientation))
    expected = TURNS[orientation](true_depth())
    np.testing.assert_allclose(1 / depth_map.depth_m, 1 / expected, atol=0.06)


@pytest.mark.parametrize("num_turns", [0, 1, 2, 3])
@pytest.mark.parametrize("is_turned_itself", [True, False])
def test_the_disparity_of_a_heic_is_read_by_its_representation(num_turns: int, is_turned_itself: bool) -> None:
    """The range is that of iPhones' own representation; libheif reads it too."""
    grey = np.arange(0, 256, dtype=np.uint8).repeat(24).reshape(HEIGHT, WIDTH)
    irot = portraits.box(b"irot", bytes((num_turns,)))
    turns = [irot] if num_turns else []
    content = heic([RGB, grey], properties=[turns, [AUXILIARY, *(turns if is_turned_itself else [])]], auxiliary=[2])
    (known,) = pillow_heif.open_heif(content).info["depth_images"]
    assert (known.info["metadata"]["d_min"], known.info["metadata"]["d_max"]) == (D_MIN, D_MAX)
    depth_map = taken(content)
    stored = 1 / (D_MIN + grey / 255 * (D_MAX - D_MIN))
    np.testing.assert_allclose(depth_map.depth_m, np.rot90(stored, num_turns), rtol=1e-5)
    assert not depth_map.is_metric, "the standard leaves the unit open, and nothing says Apple"


def test_the_depth_of_a_heic_is_cropped_like_its_image() -> None:
    grey = np.arange(0, 256, dtype=np.uint8).repeat(24).reshape(HEIGHT, WIDTH)
    # The right half, and the lower half: 48 x 32 pixels whose centre lies 24 and 16 beyond the middle.
    clap = portraits.box(b"clap", struct.pack(">IIIIiIiI", 48, 1, 32, 1, 24, 1, 16, 1))
    content = heic([RGB, grey], properties=[[clap], [AUXILIARY]], auxiliary=[2])
    depth_map = taken(content)
    stored = 1 / (D_MIN + grey / 255 * (D_MAX - D_MIN))
    np.testing.assert_allclose(depth_map.depth_m, stored[32:, 48:], rtol=1e-5)


def test_apples_metadata_in_a_heic_name_range_accuracy_and_camera() -> None:
    grey = np.arange(0, 256, dtype=np.uint8).repeat(24).reshape(HEIGHT, WIDTH)
    metadata = apple_packet("disparity", 0.25, 2.0, accuracy="absolute", focal_px=3032.6)
    content = heic([RGB, grey], properties=[[], [AUXILIARY]], auxiliary=[2], metadata=metadata)
    depth_map = taken(content)
    np.testing.assert_allclose(depth_map.depth_m, 1 / (0.25 + grey / 255 * 1.75), rtol=1e-5)
    assert depth_map.is_metric
    assert depth_map.focal_length_px == pytest.approx(3032.6 * WIDTH / 4032)


def pair(disparity_px: int, *, width: int = 320, height: int = 240) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return two views of a textured wall, which the right camera sees farther left."""
    noise = np.random.default_rng(1).integers(0, 256, (height // 4, width // 4 + 16, 3), dtype=np.uint8)
    size = (4 * noise.shape[1], height)
    texture = np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC))
    return texture[:, :width], texture[:, disparity_px : disparity_px + width]


@pytest.mark.parametrize(("num_turns", "main"), [(0, "left"), (0, "right"), (1, "left")])
def test_a_stereo_pair_gives_depth_by_its_cameras(num_turns: int, main: str) -> None:
    """A disparity of 20 px, a focal length of 250 px and a baseline of 64 mm: 0.8 m."""
    left, right = pair(20)
    irot = [portraits.box(b"irot", bytes((num_turns,)))] if num_turns else []
    views = [(left, [cmin(250, 320), cmex(0), *irot]), (right, [cmin(250, 320), cmex(64_000), *irot])]
    order = views if main == "left" else views[::-1]
    content = heic(
        [view for view, _ in order], properties=[own for _, own in order], group=[1, 2] if main == "left" else [2, 1]
    )
    source = images.decode(content)
    assert source.camera.focal_length_px == pytest.approx(250, rel=1e-4)
    depth_map = embedded.decode(content, source)
    assert depth_map is not None
    assert depth_map.depth_m.shape == source.rgb.shape[:2]
    assert np.isnan(depth_map.depth_m).mean() < 0.15
    np.testing.assert_allclose(np.nanmedian(depth_map.depth_m), 0.8, rtol=0.02)
    assert depth_map.origin.startswith("stereo pair, 64.0 mm apart")


def test_a_stereo_pair_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    left, right = pair(20)
    content = heic([left, right], properties=[[cmin(250, 320), cmex(0)], [cmin(250, 320), cmex(64_000)]], group=[1, 2])
    with pytest.raises(NotInstalledError, match="extra 'stereo'"):
        taken(content)


def test_a_stereo_pair_without_its_cameras_is_refused() -> None:
    left, right = pair(20)
    content = heic([left, right], properties=[[], []], group=[1, 2])
    with pytest.raises(DepthError, match="without its cameras' focal length and distance"):
        taken(content)


def test_photographs_without_depth_carry_none() -> None:
    for content in (jpeg(), heic([RGB], properties=[[]]), portraits.png(RGB), portraits.multi_picture(jpeg(), jpeg())):
        assert embedded.decode(content, images.decode(content)) is None
        assert embedded.describe(content) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gdepth_jpeg().replace(b'Near="0.5"', b'Near="9.5"'), "names the range 9.5 to 4.0"),
        (gdepth_jpeg().replace(b"RangeInverse", b"RangeUnknown"), "in the format 'RangeUnknown'"),
        (gdepth_jpeg().replace(b"GDepth:Data", b"GDepth:None"), "not in the file"),
        (dynamic_depth_jpeg()[:-900], "broken|not in the file"),
        (dynamic_depth_jpeg().replace(b"DepthURI>android/", b"DepthURI>other///", 1), "other///depthmap"),
        (gdepth_jpeg(extra='GDepth:ImageWidth="800" GDepth:ImageHeight="800"'), "cropped without it"),
    ],
    ids=["range", "format", "no data", "truncated", "address", "cropped"],
)
def test_depth_that_cannot_be_used_is_refused_and_never_guessed(content: bytes, message: str) -> None:
    with pytest.raises(DepthError, match=message):
        taken(content)


def test_a_description_says_what_is_in_the_file(tmp_path: Path) -> None:
    about = embedded.describe(gdepth_jpeg())
    assert about == {
        "kind": "GDepth map",
        "width": WIDTH,
        "height": HEIGHT,
        "near_m": pytest.approx(0.5),
        "far_m": pytest.approx(4.0),
        "is_metric": True,
    }
    assert "9.5" in str(embedded.describe(gdepth_jpeg().replace(b'Near="0.5"', b'Near="9.5"'))["error"])

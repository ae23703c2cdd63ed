"""Decoding of every form of image and depth."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sharp_cog.config.options import PredictOptions
from sharp_cog.errors import DepthError, ImageError
from sharp_cog.pipeline.decode import decode_depth, decode_image, read_files
from sharp_cog.pipeline.request import Request
from tests.images import npy, png

OPTIONS = PredictOptions(focal_length_px=80.0)
IMAGE = png()
PIXELS = np.asarray(Image.open(io.BytesIO(IMAGE)))
SOURCE = decode_image(IMAGE, OPTIONS, max_pixels=10**6)


def test_paths_are_read_and_hashed_like_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(IMAGE)
    (tmp_path / "a.npy").write_bytes(npy())
    read = read_files(Request(image=str(tmp_path / "a.png"), depth=tmp_path / "a.npy", key="k"))
    expected = read_files(Request(image=IMAGE, depth=npy()))
    assert (read.image, read.depth, read.key) == (IMAGE, npy(), "k")
    assert read.image_hash == expected.image_hash != expected.depth_hash == read.depth_hash
    pixels = read_files(Request(image=PIXELS, depth=np.ones((64, 96))))
    assert pixels.image_hash is pixels.depth_hash is None


def test_a_file_that_cannot_be_read_is_an_error_of_its_kind(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.png cannot be read: No such file"):
        read_files(Request(image=tmp_path / "none.png"))
    with pytest.raises(DepthError, match=r"none\.npy cannot be read: No such file"):
        read_files(Request(image=IMAGE, depth=tmp_path / "none.npy"))


@pytest.mark.parametrize("image", [IMAGE, Image.open(io.BytesIO(IMAGE)), PIXELS, SOURCE], ids=type)
def test_every_form_of_an_image_gives_the_same_pixels_and_camera(image: Any) -> None:
    source = decode_image(image, OPTIONS, max_pixels=10**6)
    np.testing.assert_array_equal(source.rgb, PIXELS)
    assert source.camera == SOURCE.camera


@pytest.mark.parametrize("image", [IMAGE, Image.open(io.BytesIO(IMAGE)), PIXELS], ids=type)
def test_every_form_of_an_image_has_a_limit_of_pixels(image: Any) -> None:
    with pytest.raises(ImageError, match="limit"):
        decode_image(image, OPTIONS, max_pixels=1000)


@pytest.mark.parametrize("fills_unknown", [True, False])
def test_unknown_depth_is_left_to_a_model_that_fills_it(fills_unknown: bool) -> None:
    values = np.load(io.BytesIO(npy()))
    values[:10] = np.nan
    file = io.BytesIO()
    np.save(file, values)
    for depth in (file.getvalue(), values):
        depth_map = decode_depth(depth, SOURCE, OPTIONS, fills_unknown=fills_unknown)
        np.testing.assert_array_equal(depth_map.depth_m[10:], values[10:])
        assert np.isnan(depth_map.depth_m[:10]).all() == fills_unknown


def test_the_options_name_the_format_of_the_depth() -> None:
    for depth in (npy(), np.load(io.BytesIO(npy()))):
        metric, relative = (
            decode_depth(depth, SOURCE, PredictOptions(depth_format=name), fills_unknown=True)
            for name in ("metric", "relative")
        )
        assert metric.is_metric
        assert not relative.is_metric

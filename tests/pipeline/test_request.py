"""Forms of a request's image and depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sharp_cog.depth.maps import DepthMap
from sharp_cog.geometry.camera import Camera
from sharp_cog.imaging.images import SourceImage
from sharp_cog.pipeline.request import Request, path_of

PIXELS = np.zeros((64, 96, 3), np.uint8)
DEPTH = np.ones((64, 96), np.float32)
SOURCE = SourceImage(rgb=PIXELS, camera=Camera(width=96, height=64, focal_length_px=80.0), image_format="none")


@pytest.mark.parametrize("image", [b"a", "a.jpg", Path("a.jpg"), Image.new("RGB", (9, 9)), PIXELS, SOURCE], ids=type)
@pytest.mark.parametrize("depth", [None, b"a", "a.npy", Path("a.npy"), DEPTH], ids=type)
def test_every_form_of_image_and_depth_is_accepted(image: Any, depth: Any) -> None:
    request = Request(image=image, depth=depth)
    assert request.image is image
    assert request.depth is depth
    assert request.is_decoded == (image is SOURCE and depth is None)


def test_other_buffers_of_bytes_become_bytes() -> None:
    request = Request(image=bytearray(b"image"), depth=memoryview(b"depth"))  # type: ignore[arg-type]
    assert (request.image, request.depth) == (b"image", b"depth")


def test_another_type_is_a_type_error_that_names_the_right_ones() -> None:
    with pytest.raises(TypeError, match=r"image is of type NoneType: give the file's bytes, a path, a PIL\.Image"):
        Request(image=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"depth is of type int: give the file's bytes, a path or a numpy array"):
        Request(image=b"a", depth=3)  # type: ignore[arg-type]


def test_a_decoded_image_with_decoded_or_estimated_depth_leaves_only_the_device_work() -> None:
    depth_map = DepthMap(depth_m=DEPTH, is_metric=True)
    assert Request(image=SOURCE, depth=depth_map).is_decoded
    assert Request(image=SOURCE, depth=lambda source: None).is_decoded  # type: ignore[arg-type,return-value]
    assert not Request(image=SOURCE, depth=DEPTH).is_decoded
    assert not Request(image=b"a", depth=depth_map).is_decoded


def test_only_text_and_path_objects_are_paths() -> None:
    assert path_of("a/b.jpg") == path_of(Path("a/b.jpg")) == Path("a/b.jpg")
    assert path_of(b"a/b.jpg") is None
    assert path_of(None) is None

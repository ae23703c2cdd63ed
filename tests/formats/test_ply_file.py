"""The .ply container, on files that other tools write and on broken ones."""

from __future__ import annotations

import numpy as np
import pytest

from sharp_cog.errors import SplatError
from sharp_cog.formats import read
from sharp_cog.formats.ply_file import (
    Element,
    metadata_comments,
    read_camera,
    read_elements,
    read_frame,
    read_header,
    write_header,
)
from sharp_cog.formats.scene import PHOTOGRAPH_FRAME, Frame
from tests.formats.cases import written
from tests.splats import CAMERA, random_gaussians

WHOLE = written("ply", random_gaussians(5))


def test_a_header_is_read_as_it_was_written() -> None:
    elements = [
        Element(name="vertex", count=2, properties=[("x", "f4"), ("id", "u1")]),
        Element(name="size", count=1, properties=[("size", "u4")]),
    ]
    content = write_header(elements, ["generator test", "axes opencv"])
    header = read_header(content)
    assert header.encoding == "binary_little_endian"
    assert header.elements == elements
    assert header.comments == ["generator test", "axes opencv"]
    assert header.num_bytes == len(content)
    body = np.array([(1.5, 7), (-2.0, 8)], dtype=[("x", "<f4"), ("id", "u1")]).tobytes() + b"\x05\0\0\0"
    arrays = read_elements(content + body, header)
    assert arrays["vertex"]["x"].tolist() == [1.5, -2.0]
    assert arrays["vertex"]["id"].tolist() == [7, 8]
    assert arrays["size"]["size"].tolist() == [5]


@pytest.mark.parametrize("frame", [PHOTOGRAPH_FRAME, Frame(axes="opengl", camera_position=(0.1, -2.0, 1e-30))])
def test_camera_and_frame_survive_in_comments(frame: Frame) -> None:
    comments = metadata_comments(CAMERA, frame)
    assert read_camera(comments, {}) == CAMERA
    assert read_frame(comments) == frame


def test_files_without_metadata_have_neither_camera_nor_frame() -> None:
    assert read_camera(["generator of another tool"], {}) is None
    assert read_frame(["axes", "axes of another tool"]) is None


def test_headers_of_other_tools_and_editors_are_read() -> None:
    header, body = WHOLE.split(b"end_header\n", 1)
    headers = {
        "Windows line ends": header.replace(b"\n", b"\r\n") + b"end_header\r\n",
        "UTF-8 in a comment": header.replace(b"axes opencv", "\u00c5ngstr\u00f6m \u2026".encode()) + b"end_header\n",
        "end_header in a comment": header.replace(b"axes opencv", b"before end_header") + b"end_header\n",
        "an element without properties": header + b"element nothing 7\nend_header\n",
    }
    for changed in headers.values():
        splat = read(changed + body)
        assert splat.camera == CAMERA
        np.testing.assert_array_equal(splat.gaussians.means, read(WHOLE).gaussians.means)


@pytest.mark.parametrize(
    ("message", "old", "new"),
    [
        ("its header does not start with 'ply' and end with", b"\nend_header", b" end_header"),
        ("cannot be read: 'element vertex \u00b2'", b"element vertex 5", b"element vertex \xb2"),
        ("cannot be read: 'element vertex 999", b"element vertex 5", b"element vertex " + b"9" * 5000),
        ("promises 99999999999", b"element vertex 5", b"element vertex 99999999999"),
        ("cannot be read: 'property list", b"property float x", b"property list uchar int x"),
        ("format 'binary_middle'", b"binary_little_endian", b"binary_middle"),
        ("the camera in the .ply cannot be read", b"image_size 1200 800", b"image_size 1200"),
        (
            "the camera's position in the .ply",
            b"comment axes opencv",
            b"comment axes opencv\ncomment camera_position 1",
        ),
        (
            "the camera is at 1.0 nan 1.0",
            b"comment axes opencv",
            b"comment axes opencv\ncomment camera_position 1 nan 1",
        ),
    ],
)
def test_broken_headers_are_refused(message: str, old: bytes, new: bytes) -> None:
    assert old in WHOLE
    with pytest.raises(SplatError, match=message):
        read(WHOLE.replace(old, new, 1))


def test_an_impossible_camera_in_apples_elements_is_refused() -> None:
    content = written("apple_ply", random_gaussians(5))
    content = content.replace(b"property uint image_size", b"property float image_size")
    content = content.replace(np.array([1200, 800], "<u4").tobytes(), np.array([np.inf, 800], "<f4").tobytes())
    with pytest.raises(SplatError, match=r"the camera in the \.ply cannot be read"):
        read(content)

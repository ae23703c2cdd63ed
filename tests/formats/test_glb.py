"""The JSON part of a .glb; test_registry.py compares the Gaussians, test_other_tools.py runs Khronos' validator."""

from __future__ import annotations

import numpy as np
import pytest

from sharp_cog.errors import OutputError
from sharp_cog.formats import glb
from tests.decoders import glb_document
from tests.formats.cases import written
from tests.splats import random_gaussians


def test_the_photographs_camera_is_a_node() -> None:
    document, _ = glb_document(written("glb", random_gaussians(3), center=True))
    (scene,) = document["scenes"]
    nodes = {document["nodes"][index]["name"]: document["nodes"][index] for index in scene["nodes"]}
    assert nodes["splat"]["mesh"] == 0
    assert nodes["photograph"]["camera"] == 0
    perspective = document["cameras"][0]["perspective"]
    assert perspective["yfov"] == pytest.approx(2 * np.arctan(400 / 1150.25))
    assert perspective["aspectRatio"] == 1.5
    centre = np.median(random_gaussians(3).means.numpy(), axis=0) * [1, -1, -1]
    np.testing.assert_allclose(nodes["photograph"]["translation"], -centre, rtol=1e-6)
    assert nodes["photograph"]["extras"] == {"focal_length_px": 1150.25, "image_size": [1200, 800]}


def test_bounds_and_colours_serve_viewers_without_the_extension() -> None:
    gaussians = random_gaussians(300)
    document, binary = glb_document(written("glb", gaussians))
    attributes = document["meshes"][0]["primitives"][0]["attributes"]
    positions = document["accessors"][attributes["POSITION"]]
    means = gaussians.means.numpy() * np.array([1, -1, -1], dtype=np.float32)
    np.testing.assert_array_equal(positions["min"], means.min(axis=0))
    np.testing.assert_array_equal(positions["max"], means.max(axis=0))
    view = document["bufferViews"][document["accessors"][attributes["COLOR_0"]]["bufferView"]]
    rgba = np.frombuffer(binary, "u1", view["byteLength"], view["byteOffset"]).reshape(-1, 4)
    np.testing.assert_allclose(rgba[:, :3] / 255, gaussians.colors_linear, atol=0.51 / 255)


def test_a_splat_without_gaussians_is_a_node_without_mesh() -> None:
    document, binary = glb_document(written("glb", random_gaussians(0)))
    assert "meshes" not in document
    assert "extensionsUsed" not in document
    assert binary == b""


def test_files_beyond_32_bits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glb, "_MAX_BYTES", 2000)
    with pytest.raises(OutputError, match=r"300 Gaussians make a \.glb of \d+ bytes, the limit is 2000"):
        written("glb", random_gaussians(300))

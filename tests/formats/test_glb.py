"""The JSON part of a .glb, and files of other tools.

test_registry.py compares the Gaussians, test_other_tools.py runs Khronos' validator.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from sharp_cog import formats
from sharp_cog.errors import OutputError, SplatError
from sharp_cog.formats import glb
from sharp_cog.formats.glb import SPZ_EXTENSIONS
from tests import decoders
from tests.decoders import glb_document
from tests.formats.cases import written
from tests.formats.samples import TRUTH, glb_of, glb_with_spz, sample
from tests.splats import CAMERA, degrees_between, random_gaussians, srgb_of, with_harmonics


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


def test_a_glb_of_splat_transform_is_read() -> None:
    """It has no camera, and looks along +z where ours looks along -z, which its generator tells."""
    gaussians = formats.read(sample("plain.glb")).gaussians
    np.testing.assert_allclose(gaussians.means, TRUTH.means, atol=1e-6)
    np.testing.assert_allclose(gaussians.scales, TRUTH.scales, rtol=1e-6)
    assert degrees_between(gaussians.quaternions_wxyz.numpy(), TRUTH.wxyz).max() < 0.01
    np.testing.assert_allclose(srgb_of(gaussians.colors_linear), TRUTH.srgb, atol=2e-6)
    np.testing.assert_allclose(gaussians.opacities, TRUTH.opacities, atol=1e-6)
    assert gaussians.harmonics is not None
    np.testing.assert_allclose(gaussians.harmonics, TRUTH.harmonics, atol=2e-6)


Document = dict[str, Any]


def edited(content: bytes, edit: Callable[[Document], object]) -> bytes:
    document, binary = glb_document(content)
    edit(document)
    return glb_of(document, binary)


GAUSSIANS = random_gaussians(30)


def test_the_camera_and_the_frame_are_read_back() -> None:
    for content in (written("glb", GAUSSIANS), written("glb", GAUSSIANS, center=True)):
        splat = formats.read(content)
        assert splat.camera == CAMERA
        torch.testing.assert_close(splat.gaussians.means, GAUSSIANS.means, atol=2e-6, rtol=0)


def test_a_camera_of_another_program_is_taken_with_an_assumed_height() -> None:
    def anonymous(document: Document) -> None:
        del document["nodes"][1]["extras"]
        document["nodes"][1] |= {"translation": [1, 2, 3], "rotation": [0, 2**0.5 / 2, 0, 2**0.5 / 2]}

    splat = formats.read(edited(written("glb", GAUSSIANS), anonymous))
    assert splat.camera is not None
    assert (splat.camera.width, splat.camera.height) == (1200, 800)
    assert splat.camera.focal_length_px == pytest.approx(1150.25)
    # Turned by 90 degrees about y, the camera looks along -x of glTF; y of glTF is down in OpenCV.
    x, y, z = (GAUSSIANS.means * torch.tensor([1, -1, -1]) - torch.tensor([1, 2, 3])).unbind(-1)
    torch.testing.assert_close(splat.gaussians.means, torch.stack([-z, -y, -x], dim=-1), atol=1e-5, rtol=0)


def test_nodes_place_their_gaussians() -> None:
    """A parent moves and turns, a child scales; scipy composes the same."""
    turn = Rotation.from_euler("xyz", [20, 30, 40], degrees=True)

    def nest(document: Document) -> None:
        document["nodes"] += [{"children": [0], "rotation": turn.as_quat().tolist(), "translation": [1, 2, 3]}]
        document["nodes"][0]["scale"] = [2, 2, 2]
        document["scenes"] = [{"nodes": [2]}]
        del document["nodes"][0]["name"]

    seen = formats.read(edited(written("glb", GAUSSIANS), nest)).gaussians
    flip = Rotation.from_euler("x", 180, degrees=True)
    expected = flip.apply(turn.apply(2 * flip.apply(GAUSSIANS.means.double().numpy())) + np.array([1, 2, 3]))
    np.testing.assert_allclose(seen.means, expected, atol=1e-5)
    np.testing.assert_allclose(seen.scales, 2 * GAUSSIANS.scales, rtol=1e-5)
    rotations = flip * turn * flip * Rotation.from_quat(GAUSSIANS.quaternions_wxyz.double().numpy(), scalar_first=True)
    assert degrees_between(seen.quaternions_wxyz.numpy(), rotations.as_quat(scalar_first=True)).max() < 0.01


def test_logarithms_of_scales_of_an_earlier_draft_are_read() -> None:
    document, binary = glb_document(written("glb", GAUSSIANS))
    view = document["bufferViews"][2]
    scales = np.frombuffer(binary, "<f4", view["byteLength"] // 4, view["byteOffset"])
    start, end = view["byteOffset"], view["byteOffset"] + view["byteLength"]
    logarithms = np.log(scales).astype("<f4").tobytes()
    seen = formats.read(glb_of(document, binary[:start] + logarithms + binary[end:])).gaussians
    torch.testing.assert_close(seen.scales, GAUSSIANS.scales, rtol=1e-5, atol=0)


def test_normalised_integers_and_strides_are_read() -> None:
    document, binary = glb_document(written("glb", GAUSSIANS))
    attributes = document["meshes"][0]["primitives"][0]["attributes"]
    for name, kind, number, width in (("ROTATION", "<i2", 5122, 4), ("OPACITY", "u1", 5121, 1)):
        accessor = document["accessors"][attributes[f"KHR_gaussian_splatting:{name}"]]
        view = document["bufferViews"][accessor["bufferView"]]
        values = np.frombuffer(binary, "<f4", view["byteLength"] // 4, view["byteOffset"]).reshape(-1, width)
        records = np.zeros(len(values), np.dtype([("value", kind, width), ("padding", "u1", 8)]))
        records["value"] = np.rint(values * np.iinfo(kind).max).reshape(records["value"].shape)
        document["bufferViews"].append(
            {"buffer": 0, "byteOffset": len(binary), "byteLength": records.nbytes, "byteStride": records.itemsize}
        )
        accessor |= {"bufferView": len(document["bufferViews"]) - 1, "componentType": number, "normalized": True}
        binary += records.tobytes()
    document["buffers"][0]["byteLength"] = len(binary)
    seen = formats.read(glb_of(document, binary)).gaussians
    assert degrees_between(seen.quaternions_wxyz.numpy(), GAUSSIANS.quaternions_wxyz.numpy()).max() < 0.01
    torch.testing.assert_close(seen.opacities, GAUSSIANS.opacities, atol=0.51 / 255, rtol=0)


@pytest.mark.parametrize("is_base64", [False, True])
def test_a_gltf_is_read_with_its_buffer(is_base64: bool, tmp_path: Path) -> None:
    document, binary = glb_document(written("glb", GAUSSIANS))
    encoded = "data:application/octet-stream;base64," + base64.b64encode(binary).decode()
    document["buffers"][0]["uri"] = encoded if is_base64 else "room.bin"
    (tmp_path / "room.bin").write_bytes(binary)
    (tmp_path / "room.gltf").write_text(json.dumps(document))
    torch.testing.assert_close(formats.read(tmp_path / "room.gltf").gaussians.means, GAUSSIANS.means)
    document["buffers"][0]["uri"] = "../room.bin"
    (tmp_path / "room.gltf").write_text(json.dumps(document))
    with pytest.raises(SplatError, match="not the name of a file beside it"):
        formats.read(tmp_path / "room.gltf")


SPZ = written("spz", GAUSSIANS)


@pytest.mark.parametrize("name", SPZ_EXTENSIONS)
def test_an_spz_inside_is_read(name: str) -> None:
    seen = formats.read(glb_with_spz(SPZ, name)).gaussians
    torch.testing.assert_close(seen.means, GAUSSIANS.means, atol=0.5 / 4096 + 1e-5, rtol=0)


def test_a_mesh_is_named_for_what_it_is() -> None:
    def plain(document: Document) -> None:
        del document["meshes"][0]["primitives"][0]["extensions"]

    with pytest.raises(SplatError, match="meshes without KHR_gaussian_splatting: it holds no Gaussians"):
        formats.read(edited(written("glb", GAUSSIANS), plain))


def attribute(document: Document, name: str) -> Document:
    attributes = document["meshes"][0]["primitives"][0]["attributes"]
    accessor: Document = document["accessors"][attributes[name]]
    return accessor


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: attribute(d, "POSITION").update(count=10**12), "promises 1000000000000 elements"),
        (lambda d: attribute(d, "POSITION").update(count=29), "have different lengths"),
        (lambda d: attribute(d, "POSITION").update(count=True), "count is True"),
        (lambda d: attribute(d, "POSITION").update(byteOffset=-4), "byteOffset is -4"),
        (lambda d: attribute(d, "POSITION").pop("bufferView"), "sparse or has no values"),
        (lambda d: attribute(d, "POSITION").update(type="VEC4"), "type 'VEC4' of 5126, not of 3 numbers"),
        (lambda d: attribute(d, "POSITION").update(componentType=[]), "not of 3 numbers"),
        (lambda d: d["bufferViews"][0].update(byteStride=4), "promises 30 elements"),
        (lambda d: d["bufferViews"][0].update(byteLength=10**9), "ends at byte 1000000000 of a buffer"),
        (lambda d: d["bufferViews"][0].update(buffer=7), "refers to 7 of its buffers"),
        (lambda d: d["meshes"][0]["primitives"][0]["attributes"].pop("POSITION"), "without the attribute POSITION"),
        (lambda d: d["nodes"][0].update(children=[0]), "more than 10000 nodes, or a circle"),
        (lambda d: d["nodes"][0].update(scale=[1, 2, 1]), "cannot move Gaussians"),
        (lambda d: d["nodes"][0].update(scale=[1, 1, -1]), "cannot move Gaussians"),
        (lambda d: d["nodes"][0].update(rotation=[0, 0, 0, 0]), r"rotation is \[0, 0, 0, 0\]"),
        (lambda d: d["nodes"][0].update(mesh="a"), "refers to 'a' of its meshes"),
        (lambda d: d["nodes"].clear(), "refers to 0 of its nodes"),
        (lambda d: d["nodes"][1].pop("extras") and d["cameras"][0]["perspective"].update(yfov=9), "field of view 9"),
    ],
)
def test_broken_documents_are_refused(edit: Callable[[Document], object], message: str) -> None:
    with pytest.raises(SplatError, match=message):
        formats.read(edited(written("glb", GAUSSIANS), edit))


def test_a_mesh_shown_by_thousands_of_nodes_is_refused() -> None:
    def repeat(document: Document) -> None:
        document["nodes"] += [{"mesh": 0}] * 5000
        document["scenes"] = [{"nodes": list(range(2, 5002))}]

    with pytest.raises(SplatError, match="more than 10000000 Gaussians"):
        formats.read(edited(written("glb", random_gaussians(3000)), repeat))


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_spherical_harmonics_are_attributes_up_to_degree_3(degree: int) -> None:
    gaussians = with_harmonics(random_gaussians(20), degree)
    content = written("glb", gaussians)
    document, _ = glb_document(content)
    names = set(document["meshes"][0]["primitives"][0]["attributes"])
    assert f"KHR_gaussian_splatting:SH_DEGREE_{min(degree, 3)}_COEF_{2 * min(degree, 3)}" in names
    assert not any("SH_DEGREE_4" in name for name in names)
    seen = formats.read(content).gaussians
    assert gaussians.harmonics is not None
    assert seen.harmonics is not None
    torch.testing.assert_close(seen.harmonics, gaussians.harmonics[:, :15])
    torch.testing.assert_close(seen.colors_linear, gaussians.colors_linear, atol=1e-5, rtol=1e-5)


def test_a_compressed_glb_holds_a_whole_spz_and_nothing_else() -> None:
    gaussians = random_gaussians(300)
    content = written("glb", gaussians, glb_compression="spz")
    document, binary = glb_document(content)
    name = "KHR_gaussian_splatting_compression_spz_2"
    assert document["extensionsUsed"] == document["extensionsRequired"] == ["KHR_gaussian_splatting", name]
    (view,) = document["bufferViews"]
    decoded = decoders.spz(binary[: view["byteLength"]])
    np.testing.assert_allclose(decoded.means, gaussians.means.numpy() * [1, -1, -1], atol=0.5 / 4096 + 1e-5)
    primitive = document["meshes"][0]["primitives"][0]
    assert primitive["extensions"]["KHR_gaussian_splatting"]["extensions"] == {name: {"bufferView": 0}}
    assert set(primitive["attributes"]) == {
        *("POSITION", "COLOR_0"),
        *("KHR_gaussian_splatting:SCALE", "KHR_gaussian_splatting:ROTATION"),
    }
    assert not any("bufferView" in accessor for accessor in document["accessors"])
    splat = formats.read(content)
    assert splat.camera == CAMERA
    torch.testing.assert_close(splat.gaussians.means, gaussians.means, atol=0.5 / 4096 + 1e-5, rtol=0)
    assert len(content) < len(written("glb", gaussians)) / 2

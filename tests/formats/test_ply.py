"""Both .ply forms, compared with plyfile, and the rows from which all formats are made."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from numpy.lib.recfunctions import drop_fields as drop_fields_of_numpy
from plyfile import PlyData, PlyElement

import sharp_cog
from sharp_cog.errors import SplatError
from sharp_cog.formats.ply import PROPERTIES, is_apple_ply, read_ply, vertex_block
from sharp_cog.geometry.gaussians import Gaussians
from tests.formats.cases import FIELDS, written
from tests.fused_kernels import DEVICE, fused
from tests.splats import CAMERA, SIZES, random_gaussians, srgb_of, with_harmonics


def expected_columns(gaussians: Gaussians) -> dict[str, np.ndarray]:
    """Return the columns that 3DGS tools expect, computed in float64 from the definitions."""
    srgb = srgb_of(gaussians.colors_linear)
    opacity = gaussians.opacities.double().numpy()
    table = [
        *gaussians.means.double().numpy().T,
        *((srgb - 0.5) / 0.28209479177387814).T,
        np.log(opacity / (1 - opacity)),
        *np.log(gaussians.scales.double().numpy()).T,
        *gaussians.quaternions_wxyz.double().numpy().T,
    ]
    return dict(zip(PROPERTIES, table, strict=True))


@pytest.mark.parametrize("num", SIZES)
@pytest.mark.parametrize("output_format", ["ply", "apple_ply"])
def test_plyfile_reads_the_same_gaussians(num: int, output_format: str) -> None:
    gaussians = random_gaussians(num)
    vertices = PlyData.read(io.BytesIO(written(output_format, gaussians)))["vertex"]
    assert [prop.name for prop in vertices.properties] == list(PROPERTIES)
    assert {prop.val_dtype for prop in vertices.properties} == {"f4"}
    assert vertices.count == num
    for name, values in expected_columns(gaussians).items():
        np.testing.assert_allclose(vertices[name], values, rtol=2e-6, atol=2e-6)


def test_a_plain_ply_has_vertices_alone_and_metadata_in_comments() -> None:
    ply = PlyData.read(io.BytesIO(written("ply", random_gaussians(3))))
    assert [element.name for element in ply.elements] == ["vertex"]
    comments = ply["vertex"].comments  # They stand after it.
    assert "focal_length_px 1150.25" in comments
    assert "image_size 1200 800" in comments
    assert f"generator sharp_cog {sharp_cog.__version__}" in comments


def test_an_apple_ply_has_apples_elements() -> None:
    gaussians = random_gaussians(1000)
    gaussians.means[:, 2].abs_().add_(0.5)
    content = written("apple_ply", gaussians)
    ply = PlyData.read(io.BytesIO(content))
    found = {extra.name: (extra.properties[0].val_dtype, extra.data[extra.name]) for extra in ply.elements[1:]}
    disparity = 1 / gaussians.means[:, 2].double().numpy()
    expected: dict[str, tuple[str, Any]] = {
        "extrinsic": ("f4", np.eye(4).ravel()),
        "intrinsic": ("f4", [1150.25, 0, 600, 0, 1150.25, 400, 0, 0, 1]),
        "image_size": ("u4", [1200, 800]),
        "frame": ("i4", [1, 1000]),
        "disparity": ("f4", np.quantile(disparity, [0.1, 0.9])),
        "color_space": ("u1", [0]),
        "version": ("u1", [1, 5, 0]),
    }
    assert list(found) == list(expected)
    for name, (dtype, values) in expected.items():
        assert found[name][0] == dtype
        np.testing.assert_allclose(found[name][1], values, rtol=1e-6)
    assert ply.comments == []
    header = content.split(b"end_header\n")[0]
    assert len(content) == len(header) + 11 + 1000 * 56 + 16 * 4 + 9 * 4 + 8 + 8 + 8 + 1 + 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("depth_m", [0.0, 1e-45, -2.0])
def test_apples_disparities_are_finite_at_and_behind_the_camera(depth_m: float) -> None:
    gaussians = random_gaussians(9)
    gaussians.means[:] = depth_m  # All at the same place.
    ply = PlyData.read(io.BytesIO(written("apple_ply", gaussians)))
    expected = 1 / depth_m if depth_m < 0 else 1e6
    np.testing.assert_allclose(ply["disparity"]["disparity"], [expected] * 2)


def test_opacities_and_scales_at_the_ends_of_their_ranges_are_kept() -> None:
    gaussians = random_gaussians(4)
    gaussians.opacities[:2] = torch.tensor([0.0, 1.0])
    gaussians.scales[0] = 0.0
    gaussians.colors_linear[0] = torch.tensor([0.0, 1.0, 0.0])
    back = read_ply(written("ply", gaussians)).gaussians
    assert np.isfinite(vertex_block(gaussians)).all()
    torch.testing.assert_close(back.opacities, gaussians.opacities, rtol=0, atol=1e-6)
    assert (back.scales[0] < 1e-37).all()


@given(
    st_numpy.arrays(np.float32, (5, 14), elements=st.floats(0, 1, width=32)),
    st.floats(-(2.0**100), 2.0**100, width=32),
)
def test_no_value_in_range_becomes_infinite(values: np.ndarray, mean: float) -> None:
    table = torch.from_numpy(values)
    gaussians = Gaussians(
        means=table[:, 0:3] * mean,
        scales=table[:, 3:6],
        quaternions_wxyz=torch.nn.functional.normalize(table[:, 6:10] + torch.tensor([0.5, 0.0, 0.0, 0.0]), dim=1),
        colors_linear=table[:, 10:13],
        opacities=table[:, 13],
    )
    block = vertex_block(gaussians)
    assert block.shape == (5, 14)
    assert np.isfinite(block).all()


@pytest.mark.parametrize("num", SIZES)
@pytest.mark.parametrize("output_format", ["ply", "apple_ply"])
def test_a_round_trip_changes_nothing(num: int, output_format: str) -> None:
    gaussians = random_gaussians(num)
    splat = read_ply(written(output_format, gaussians))
    assert splat.camera == CAMERA
    for field in FIELDS:
        torch.testing.assert_close(getattr(splat.gaussians, field), getattr(gaussians, field), rtol=1e-5, atol=1e-6)


def test_colours_of_trained_splats_out_of_range_survive_a_round_trip() -> None:
    vertices = np.zeros(9, dtype=[(name, "f4") for name in PROPERTIES])
    vertices["rot_0"] = 1
    for index in range(3):
        vertices[f"f_dc_{index}"] = np.linspace(-9 + index, 8, 9)
    file = io.BytesIO()
    PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").write(file)
    gaussians = read_ply(file.getvalue()).gaussians
    again = PlyData.read(io.BytesIO(written("ply", gaussians)))["vertex"]
    for index in range(3):
        np.testing.assert_allclose(again[f"f_dc_{index}"], vertices[f"f_dc_{index}"], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("text", "byte_order"), [(True, "="), (False, ">"), (False, "<")])
def test_files_of_plyfile_with_properties_of_other_tools_are_read(text: bool, byte_order: str) -> None:
    gaussians = random_gaussians(7)
    block = vertex_block(gaussians)
    names = ["nx", *PROPERTIES[:6], "f_rest_0", *PROPERTIES[6:]]
    vertices = np.zeros(7, dtype=[(name, "f4") for name in names])
    for index, name in enumerate(PROPERTIES):
        vertices[name] = block[:, index]
    file = io.BytesIO()
    PlyData([PlyElement.describe(vertices, "vertex")], text=text, byte_order=byte_order).write(file)
    splat = read_ply(file.getvalue())
    assert splat.camera is None
    torch.testing.assert_close(splat.gaussians.means, gaussians.means, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(splat.gaussians.opacities, gaussians.opacities, rtol=1e-4, atol=1e-5)


def vertices_of(num: int, *more: tuple[str, str]) -> np.ndarray:
    """Return Gaussians as plyfile takes them, with further properties that are zero."""
    gaussians = random_gaussians(num)
    vertices = np.zeros(num, dtype=[*((name, "f4") for name in PROPERTIES), *more])
    for index, name in enumerate(PROPERTIES):
        vertices[name] = vertex_block(gaussians)[:, index]
    return vertices


def drop_fields(vertices: np.ndarray, *names: str) -> np.ndarray:
    kept: np.ndarray = drop_fields_of_numpy(vertices, list(names), usemask=False)
    return kept


def content_of(*elements: PlyElement, text: bool = False) -> bytes:
    file = io.BytesIO()
    PlyData(list(elements), text=text, byte_order="<").write(file)
    return file.getvalue()


def faces(num: int) -> PlyElement:
    rows = np.empty(num, dtype=[("vertex_indices", object)])
    rows["vertex_indices"] = [np.arange(3, dtype="i4") for _ in range(num)]
    return PlyElement.describe(rows, "face", val_types={"vertex_indices": "i4"}, len_types={"vertex_indices": "u1"})


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_harmonics_of_other_tools_are_read_channel_after_channel(degree: int) -> None:
    """f_rest_0 and on are all coefficients of red, then of green, then of blue."""
    num_bands = (degree + 1) ** 2 - 1
    vertices = vertices_of(6, *((f"f_rest_{index}", "f4") for index in range(3 * num_bands)))
    rng = np.random.default_rng(0)
    for index in range(3 * num_bands):
        vertices[f"f_rest_{index}"] = rng.normal(size=6)
    harmonics = read_ply(content_of(PlyElement.describe(vertices, "vertex"))).gaussians.harmonics
    assert harmonics is not None
    for channel in range(3):
        for band in range(num_bands):
            expected = vertices[f"f_rest_{channel * num_bands + band}"]
            np.testing.assert_array_equal(harmonics[:, band, channel], expected)


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_harmonics_are_written_in_the_layout_of_the_original_code(degree: int) -> None:
    gaussians = with_harmonics(random_gaussians(70), degree) if degree else random_gaussians(70)
    content = written("ply", gaussians, normals=True)
    vertices = PlyData.read(io.BytesIO(content))["vertex"]
    num_rest = 3 * ((degree + 1) ** 2 - 1)
    rest = [f"f_rest_{index}" for index in range(num_rest)]
    expected = [*PROPERTIES[:3], "nx", "ny", "nz", *PROPERTIES[3:6], *rest, *PROPERTIES[6:]]
    assert [prop.name for prop in vertices.properties] == expected
    assert not any(vertices[name].any() for name in ("nx", "ny", "nz"))
    for name, values in expected_columns(gaussians).items():
        np.testing.assert_allclose(vertices[name], values, rtol=2e-5, atol=2e-6)
    back = read_ply(content).gaussians
    assert back.degree == degree
    if degree:
        assert back.harmonics is not None
        assert gaussians.harmonics is not None
        assert torch.equal(back.harmonics, gaussians.harmonics)


@pytest.mark.parametrize("case", ["ply", "compressed_ply"])
def test_the_first_element_stands_in_the_third_line(case: str) -> None:
    """The original viewer and its copies read the number of vertices from there."""
    lines = written(case, random_gaussians(3)).split(b"end_header")[0].decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    assert lines[2] == ("element vertex 3" if case == "ply" else "element chunk 1")
    assert "comment focal_length_px 1150.25" in lines


def test_a_degree_of_zeros_suits_the_original_viewer() -> None:
    """That viewer reads rows of 62 floats."""
    gaussians = random_gaussians(5)
    content = written("ply", gaussians, sh_degree=3, normals=True)
    header, body = content.split(b"end_header\n", 1)
    rows = np.frombuffer(body, "<f4").reshape(5, 62)
    assert not rows[:, 9:54].any()
    np.testing.assert_allclose(rows[:, 54:], vertex_block(gaussians)[:, 6:])
    assert header.decode().splitlines()[2] == "element vertex 5"


def test_point_colours_are_bytes_of_srgb() -> None:
    gaussians = with_harmonics(random_gaussians(70_000), 1)
    vertices = PlyData.read(io.BytesIO(written("ply", gaussians, point_colors=True)))["vertex"]
    assert [(prop.name, prop.val_dtype) for prop in vertices.properties][-3:] == [
        ("red", "u1"),
        ("green", "u1"),
        ("blue", "u1"),
    ]
    srgb = srgb_of(gaussians.colors_linear).clip(0, 1) * 255
    for index, name in enumerate(("red", "green", "blue")):
        assert np.abs(vertices[name] - srgb[:, index]).max() <= 0.5 + 1e-3
    np.testing.assert_allclose(vertices["opacity"], expected_columns(gaussians)["opacity"], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("num_faces", [0, 2])
def test_an_element_of_faces_after_the_gaussians_is_left_out(num_faces: int, text: bool) -> None:
    vertices = vertices_of(4)
    splat = read_ply(content_of(PlyElement.describe(vertices, "vertex"), faces(num_faces), text=text))
    np.testing.assert_allclose(splat.gaussians.means[:, 1], vertices["y"], rtol=1e-6)


def test_2d_gaussians_are_named() -> None:
    content = content_of(PlyElement.describe(drop_fields(vertices_of(4), "scale_2"), "vertex"))
    with pytest.raises(SplatError, match="has no scale_2: it holds 2D Gaussians, which are discs"):
        read_ply(content)


@pytest.mark.parametrize(("type_", "factor"), [("u1", 255), ("f4", 1)])
def test_colours_in_red_green_and_blue_are_read(type_: str, factor: int) -> None:
    vertices = vertices_of(3, ("red", type_), ("green", type_), ("blue", type_))
    vertices["green"] = 0.2 * factor
    splat = read_ply(content_of(PlyElement.describe(drop_fields(vertices, "f_dc_0", "f_dc_1", "f_dc_2"), "vertex")))
    np.testing.assert_allclose(srgb_of(splat.gaussians.colors_linear), [[0, 0.2, 0]] * 3, atol=1e-6)
    assert "colours are those of red, green and blue" in splat.notes[0]


def test_meshes_and_point_clouds_are_named() -> None:
    points = np.zeros(7, dtype=[("x", "f4"), ("y", "f4"), ("z", "f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1")])
    cloud = PlyElement.describe(points, "vertex")
    with pytest.raises(SplatError, match="is a point cloud of 7 points: use"):
        read_ply(content_of(cloud))
    with pytest.raises(SplatError, match="is a mesh of 7 vertices and 2 faces: use"):
        read_ply(content_of(cloud, faces(2)))


def test_a_wrong_number_of_harmonics_is_noted() -> None:
    splat = read_ply(content_of(PlyElement.describe(vertices_of(2, ("f_rest_0", "f4"), ("f_rest_1", "f4")), "vertex")))
    assert splat.gaussians.harmonics is None
    assert splat.notes == ("the file has 2 properties f_rest_*, not 9, 24, 45 or 72: they are left out",)


def test_apples_form_is_told_from_the_plain_one() -> None:
    assert is_apple_ply(written("apple_ply", random_gaussians(2)))
    assert not is_apple_ply(written("ply", random_gaussians(2)))


def test_apples_linear_colours_are_read_as_linear() -> None:
    gaussians = random_gaussians(5)
    content = written("apple_ply", gaussians)
    assert content[-4:] == b"\0\1\5\0"  # color_space, version
    linear = read_ply(content[:-4] + b"\1\1\5\0").gaussians.colors_linear
    srgb = 0.5 + vertex_block(gaussians)[:, 3:6] * 0.28209479177387814
    np.testing.assert_allclose(linear, srgb, atol=1e-6)


@pytest.mark.parametrize("length", [1e-37, 1e-20, 1e20, 1e37])
def test_quaternions_of_any_length_are_read_as_unit(length: float) -> None:
    gaussians = random_gaussians(64)
    content = written("ply", gaussians)
    block = vertex_block(gaussians)
    header = content.removesuffix(block.tobytes())
    block[:, 10:14] *= np.float32(length)
    back = read_ply(header + block.tobytes()).gaussians
    torch.testing.assert_close(back.quaternions_wxyz, gaussians.quaternions_wxyz, rtol=0, atol=1e-5)


def test_a_ply_that_is_no_splat_is_refused() -> None:
    whole = written("ply", random_gaussians(5))
    cases = {
        "has no opacity: it holds points or a mesh": whole.replace(b"float opacity", b"float opaque_"),
        r"no element 'vertex' that can be read \(but vertez\): it is not a splat": whole.replace(
            b"element vertex", b"element vertez"
        ),
    }
    for message, content in cases.items():
        with pytest.raises(SplatError, match=message):
            read_ply(content)


def test_the_fused_kernel_lays_out_the_same_rows() -> None:
    """Compared with numpy in float64, also at the ends of every range."""
    gaussians = random_gaussians(3000)
    colors, opacities, scales = gaussians.colors_linear.clone(), gaussians.opacities.clone(), gaussians.scales.clone()
    colors[:4] = torch.tensor([[0.0, 1.0, 0.0031308], [1e-6, 0.003, 0.0032], [0.5, 0.5, 0.5], [1.0, 0.0, 0.2]])
    opacities[:4] = torch.tensor([0.0, 1.0, 0.5, 1e-30])
    colors[4:6] = torch.tensor([[-3e38, -0.1, 1.5], [3e38, -0.0, 1.0000001]])
    opacities[4:6] = torch.tensor([-0.5, 1.5])
    scales[0] = 0
    scales[4:6] = torch.tensor([[-1.0, 3.4e38, 1e38], [1e-45, 1.0, 2e38]])
    planar = gaussians.means.t().contiguous().t()  # The network's memory layout.
    fields = (planar, colors, opacities, scales, gaussians.quaternions_wxyz)
    rows = fused.vertex_rows(*(field.to(DEVICE) for field in fields)).cpu().double().numpy()

    opacity = np.clip(opacities.double().numpy(), 2.0**-126, 1 - 2.0**-24)
    np.testing.assert_array_equal(rows[:, 0:3], planar.double().numpy())
    np.testing.assert_allclose(rows[:, 3:6], (srgb_of(colors) - 0.5) * np.sqrt(4 * np.pi), rtol=1e-5, atol=3e-6)
    np.testing.assert_allclose(rows[:, 6], np.log(opacity) - np.log1p(-opacity), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(rows[:, 7:10], np.log(scales.double().numpy().clip(2.0**-126, 1e38)), rtol=2e-6)
    np.testing.assert_array_equal(rows[:, 10:14], gaussians.quaternions_wxyz.double().numpy())


@pytest.mark.parametrize("field", range(5))
def test_the_fused_kernel_hides_no_nan(field: int) -> None:
    gaussians = random_gaussians(10)
    fields = [
        *(gaussians.means, gaussians.colors_linear, gaussians.opacities),
        *(gaussians.scales, gaussians.quaternions_wxyz),
    ]
    fields[field] = fields[field].clone()
    fields[field][7] = float("nan")
    rows = fused.vertex_rows(*(tensor.to(DEVICE) for tensor in fields)).cpu()
    assert not rows[7].isfinite().all()
    assert rows[:7].isfinite().all()

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
from plyfile import PlyData, PlyElement

import sharp_cog
from sharp_cog.errors import SplatError
from sharp_cog.formats.ply import PROPERTIES, read_ply, vertex_block
from sharp_cog.geometry.gaussians import Gaussians
from tests.formats.cases import FIELDS, written
from tests.fused_kernels import DEVICE, fused
from tests.splats import CAMERA, SIZES, random_gaussians, srgb_of


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
    assert "focal_length_px 1150.25" in ply.comments
    assert "image_size 1200 800" in ply.comments
    assert f"generator sharp_cog {sharp_cog.__version__}" in ply.comments


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
        "no element 'vertex': it is not a splat": whole.replace(b"element vertex", b"element vertez"),
        "1 values of means that are not finite": whole[:-280] + np.float32("nan").tobytes() + whole[-276:],
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

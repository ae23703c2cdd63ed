"""Both .ply forms, read back by plyfile, and our reader on files that plyfile writes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from plyfile import PlyData, PlyElement

import sharp_cog
from sharp_cog import formats
from sharp_cog.config.options import OutputOptions
from sharp_cog.config.output_formats import OUTPUT_FORMATS
from sharp_cog.errors import OptionError, OutputError, PredictionError, SplatError
from sharp_cog.formats import read
from sharp_cog.formats.ply import PROPERTIES, vertex_block
from sharp_cog.geometry.gaussians import Gaussians
from tests.fused_kernels import DEVICE, fused
from tests.splats import CAMERA, SIZES, random_gaussians

APPLE = OutputOptions(output_format="apple_ply")


def expected_columns(gaussians: Gaussians) -> dict[str, np.ndarray]:
    """What 3DGS tools expect, computed in float64 from the definitions."""
    linear = gaussians.colors_linear.double().numpy()
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    opacity = gaussians.opacities.double().numpy()
    table = [
        *gaussians.means.double().numpy().T,
        *((srgb - 0.5) / 0.28209479177387814).T,
        np.log(opacity / (1 - opacity)),
        *np.log(gaussians.scales.double().numpy()).T,
        *gaussians.quaternions_wxyz.double().numpy().T,
    ]
    return dict(zip(PROPERTIES, table, strict=True))


def test_registry_offers_the_options_formats() -> None:
    assert tuple(formats.FORMATS) == OUTPUT_FORMATS
    assert all(name == format_.name for name, format_ in formats.FORMATS.items())


@pytest.mark.parametrize("num", SIZES)
@pytest.mark.parametrize("output_format", ["ply", "apple_ply"])
def test_plyfile_reads_the_same_gaussians(tmp_path: Path, num: int, output_format: str) -> None:
    gaussians = random_gaussians(num)
    path = formats.write(tmp_path / "splat.ply", gaussians, CAMERA, OutputOptions(output_format=output_format))
    ply = PlyData.read(path)
    vertices = ply["vertex"]
    assert [prop.name for prop in vertices.properties] == list(PROPERTIES)
    assert {prop.val_dtype for prop in vertices.properties} == {"f4"}
    assert vertices.count == num
    for name, values in expected_columns(gaussians).items():
        np.testing.assert_allclose(vertices[name], values, rtol=2e-6, atol=2e-6)


def test_plain_ply_is_the_vertices_alone_with_what_is_known_in_comments(tmp_path: Path) -> None:
    ply = PlyData.read(formats.write(tmp_path / "splat.ply", random_gaussians(3), CAMERA, OutputOptions()))
    assert [element.name for element in ply.elements] == ["vertex"]
    assert "focal_length_px 1150.25" in ply.comments
    assert "image_size 1200 800" in ply.comments
    assert f"generator sharp_cog {sharp_cog.__version__}" in ply.comments


def test_apple_ply_has_apples_elements(tmp_path: Path) -> None:
    gaussians = random_gaussians(1000)
    gaussians.means[:, 2].abs_().add_(0.5)
    path = formats.write(tmp_path / "splat.ply", gaussians, CAMERA, APPLE)
    ply = PlyData.read(path)
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
    header = path.read_bytes().split(b"end_header\n")[0]
    assert path.stat().st_size == len(header) + 11 + 1000 * 56 + 16 * 4 + 9 * 4 + 8 + 8 + 8 + 1 + 3


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("depth_m", [0.0, 1e-45, -2.0])
def test_apple_ply_stays_finite_at_and_behind_the_camera(tmp_path: Path, depth_m: float) -> None:
    gaussians = random_gaussians(9)
    gaussians.means[:] = depth_m  # All at the same place.
    ply = PlyData.read(formats.write(tmp_path / "splat.ply", gaussians, CAMERA, APPLE))
    expected = 1 / depth_m if depth_m < 0 else 1e6
    np.testing.assert_allclose(ply["disparity"]["disparity"], [expected] * 2)


def test_ends_of_the_ranges_stay_representable(tmp_path: Path) -> None:
    gaussians = random_gaussians(4)
    gaussians.opacities[:2] = torch.tensor([0.0, 1.0])
    gaussians.scales[0] = 0.0
    gaussians.colors_linear[0] = torch.tensor([0.0, 1.0, 0.0])
    back = read(formats.write(tmp_path / "splat.ply", gaussians, CAMERA, OutputOptions())).gaussians
    assert np.isfinite(vertex_block(gaussians)).all()
    torch.testing.assert_close(back.opacities, gaussians.opacities, rtol=0, atol=1e-6)
    assert (back.scales[0] < 1e-37).all()


@given(
    st_numpy.arrays(np.float32, (5, 14), elements=st.floats(0, 1, width=32)),
    st.floats(-(2.0**100), 2.0**100, width=32),
)
def test_no_input_in_range_becomes_infinite(values: np.ndarray, mean: float) -> None:
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


@pytest.mark.parametrize("field", ["means", "scales", "quaternions_wxyz", "colors_linear", "opacities"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_never_written(tmp_path: Path, field: str, value: float) -> None:
    gaussians = random_gaussians(9)
    getattr(gaussians, field)[4:6] = value
    with pytest.raises(PredictionError, match="2 of 9 Gaussians are not finite"):
        formats.write(tmp_path / "splat.ply", gaussians, CAMERA, OutputOptions())
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "splat.ply"
    path.write_bytes(b"old")
    broken = random_gaussians(2)
    broken.means[0, 0] = float("nan")
    with pytest.raises(PredictionError):
        formats.write(path, broken, CAMERA, OutputOptions())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_bad_places_and_formats_are_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"):
        formats.write(tmp_path / "none" / "splat.ply", random_gaussians(1), CAMERA, OutputOptions())
    with pytest.raises(OptionError, match=r"'obj'.*ply"):
        OutputOptions(output_format="obj")


@pytest.mark.parametrize("num", SIZES)
@pytest.mark.parametrize("output_format", ["ply", "apple_ply"])
def test_round_trip(tmp_path: Path, num: int, output_format: str) -> None:
    gaussians = random_gaussians(num)
    splat = read(formats.write(tmp_path / "splat.ply", gaussians, CAMERA, OutputOptions(output_format=output_format)))
    assert splat.camera == CAMERA
    for field in ("means", "scales", "quaternions_wxyz", "colors_linear", "opacities"):
        torch.testing.assert_close(getattr(splat.gaussians, field), getattr(gaussians, field), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("text", "byte_order"), [(True, "="), (False, ">"), (False, "<")])
def test_reads_what_plyfile_writes_with_properties_of_other_tools(text: bool, byte_order: str) -> None:
    gaussians = random_gaussians(7)
    block = vertex_block(gaussians)
    names = ["nx", *PROPERTIES[:6], "f_rest_0", *PROPERTIES[6:]]
    vertices = np.zeros(7, dtype=[(name, "f4") for name in names])
    for index, name in enumerate(PROPERTIES):
        vertices[name] = block[:, index]
    file = io.BytesIO()
    PlyData([PlyElement.describe(vertices, "vertex")], text=text, byte_order=byte_order).write(file)
    splat = read(file.getvalue())
    assert splat.camera is None
    torch.testing.assert_close(splat.gaussians.means, gaussians.means, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(splat.gaussians.opacities, gaussians.opacities, rtol=1e-4, atol=1e-5)


def test_reads_headers_as_other_tools_and_editors_leave_them(tmp_path: Path) -> None:
    whole = formats.write(tmp_path / "splat.ply", random_gaussians(5), CAMERA, OutputOptions()).read_bytes()
    header, body = whole.split(b"end_header\n", 1)
    headers = {
        "Windows line ends": header.replace(b"\n", b"\r\n") + b"end_header\r\n",
        "UTF-8 in a comment": header.replace(b"axes opencv", "\u00c5ngstr\u00f6m \u2026".encode()) + b"end_header\n",
        "end_header in a comment": header.replace(b"axes opencv", b"before end_header") + b"end_header\n",
        "an element without properties": header + b"element nothing 7\nend_header\n",
    }
    for changed in headers.values():
        splat = read(changed + body)
        assert splat.camera == CAMERA
        assert torch.equal(splat.gaussians.means, read(whole).gaussians.means)


def test_apples_linear_colours_are_read_as_linear(tmp_path: Path) -> None:
    gaussians = random_gaussians(5)
    content = formats.write(tmp_path / "splat.ply", gaussians, CAMERA, APPLE).read_bytes()
    assert content[-4:] == b"\0\1\5\0"  # color_space, version
    linear = read(content[:-4] + b"\1\1\5\0").gaussians.colors_linear
    srgb = 0.5 + vertex_block(gaussians)[:, 3:6] * 0.28209479177387814
    np.testing.assert_allclose(linear, srgb, atol=1e-6)


@pytest.mark.parametrize("length", [1e-37, 1e-20, 1e20, 1e37])
def test_quaternions_of_any_length_are_read_as_unit(tmp_path: Path, length: float) -> None:
    gaussians = random_gaussians(64)
    content = formats.write(tmp_path / "splat.ply", gaussians, CAMERA, OutputOptions()).read_bytes()
    block = vertex_block(gaussians)
    header = content.removesuffix(block.tobytes())
    block[:, 10:14] *= np.float32(length)
    back = read(header + block.tobytes()).gaussians
    torch.testing.assert_close(back.quaternions_wxyz, gaussians.quaternions_wxyz, rtol=0, atol=1e-5)


def test_broken_files_are_refused_with_what_is_wrong(tmp_path: Path) -> None:
    whole = formats.write(tmp_path / "splat.ply", random_gaussians(5), CAMERA, OutputOptions()).read_bytes()
    lying = whole.replace(b"element vertex 5", b"element vertex 99999999999")
    cases = {
        "not a .ply": b"\x89PNG....",
        "truncated": whole[:-3],
        "cannot be read: 'element vertex \u00b2'": whole.replace(b"element vertex 5", b"element vertex \xb2"),
        "cannot be read: 'element vertex 999": whole.replace(b"element vertex 5", b"element vertex " + b"9" * 5000),
        "promises 99999999999": lying,
        "has no opacity": whole.replace(b"float opacity", b"float opaque_"),
        "cannot be read: 'property list": whole.replace(b"property float x", b"property list uchar int x"),
        "no element 'vertex'": whole.replace(b"element vertex", b"element vertez"),
        "format 'binary_middle'": whole.replace(b"binary_little_endian", b"binary_middle"),
        "about the camera": whole.replace(b"image_size 1200 800", b"image_size 1200"),
    }
    for message, content in cases.items():
        with pytest.raises(SplatError, match=message):
            read(content)
    apples = formats.write(tmp_path / "apple.ply", random_gaussians(5), CAMERA, APPLE).read_bytes()
    endless = apples.replace(b"property uint image_size", b"property float image_size")
    endless = endless.replace(np.array([1200, 800], "<u4").tobytes(), np.array([np.inf, 800], "<f4").tobytes())
    with pytest.raises(SplatError, match="about the camera"):
        read(endless)
    with pytest.raises(SplatError, match="cannot be read"):
        read(tmp_path / "none.ply")
    for length in range(0, len(whole), 7):
        with pytest.raises(SplatError):
            read(whole[:length])


def test_the_fused_kernel_lays_out_the_same_rows() -> None:
    """Against numpy in float64, at the ends of every range too."""
    gaussians = random_gaussians(3000)
    colors, opacities, scales = gaussians.colors_linear.clone(), gaussians.opacities.clone(), gaussians.scales.clone()
    colors[:4] = torch.tensor([[0.0, 1.0, 0.0031308], [1e-6, 0.003, 0.0032], [0.5, 0.5, 0.5], [1.0, 0.0, 0.2]])
    opacities[:4] = torch.tensor([0.0, 1.0, 0.5, 1e-30])
    colors[4:6] = torch.tensor([[-3e38, -0.1, 1.5], [3e38, -0.0, 1.0000001]])  # Out of range: the nearest in it.
    opacities[4:6] = torch.tensor([-0.5, 1.5])
    scales[0] = 0
    scales[4:6] = torch.tensor([[-1.0, 3.4e38, 1e38], [1e-45, 1.0, 2e38]])
    planar = gaussians.means.t().contiguous().t()  # As the network hands them over.
    fields = (planar, colors, opacities, scales, gaussians.quaternions_wxyz)
    rows = fused.vertex_rows(*(field.to(DEVICE) for field in fields)).cpu().double().numpy()

    linear = colors.double().numpy().clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)
    opacity = np.clip(opacities.double().numpy(), 2.0**-126, 1 - 2.0**-24)
    np.testing.assert_array_equal(rows[:, 0:3], planar.double().numpy())
    np.testing.assert_allclose(rows[:, 3:6], (srgb - 0.5) * np.sqrt(4 * np.pi), rtol=0, atol=3e-6)
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

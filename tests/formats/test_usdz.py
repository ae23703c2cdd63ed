"""The .usdz for OpenUSD: its validators, its camera, its bounds, and packages of other tools.

test_registry.py compares the Gaussians, which tests/decoders.py reads with OpenUSD.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pxr import Gf, Usd, UsdGeom, UsdUtils, UsdValidation, UsdVol, Vt
from scipy.spatial.transform import Rotation

from sharp_cog import formats
from sharp_cog.config.options import OutputOptions
from sharp_cog.errors import NotInstalledError, SplatError
from sharp_cog.formats import usd_process
from tests.formats.cases import TOLERANCES, written
from tests.splats import CAMERA, degrees_between, random_gaussians, srgb_of, with_harmonics

GAUSSIANS = random_gaussians(40)


def stage_of(content: bytes, folder: Path) -> Any:
    path = folder / "splat.usdz"
    path.write_bytes(content)
    return Usd.Stage.Open(str(path))


@pytest.mark.parametrize("num", [0, 40])
def test_openusds_validators_find_no_fault(num: int, tmp_path: Path) -> None:
    stage = stage_of(written("usdz", random_gaussians(num)), tmp_path)
    validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    assert len(validators) > 20
    faults = UsdValidation.ValidationContext(validators).Validate(stage)
    assert [fault.GetMessage() for fault in faults] == []


def test_the_only_layer_is_stored_at_a_multiple_of_64_bytes() -> None:
    content = written("usdz", GAUSSIANS)
    with zipfile.ZipFile(io.BytesIO(content)) as package:
        (member,) = package.infolist()
    assert (member.filename, member.compress_type) == ("splat.usdc", zipfile.ZIP_STORED)
    name_length, extra_length = struct.unpack_from("<HH", content, 26)
    assert (30 + name_length + extra_length) % 64 == 0
    assert content[30 + name_length + extra_length :].startswith(b"PXR-USDC")


def test_the_camera_sees_the_photograph(tmp_path: Path) -> None:
    """OpenUSD's own frustum projects a point of the scene to the same place in the image as the pinhole does."""
    content = written("usdz", GAUSSIANS, center=True)
    stage = stage_of(content, tmp_path)
    assert stage.GetDefaultPrim().GetPath() == "/scene"
    camera = UsdGeom.Camera.Get(stage, "/scene/photograph").GetCamera(Usd.TimeCode.Default())
    matrix = camera.frustum.ComputeViewMatrix() * camera.frustum.ComputeProjectionMatrix()
    field = UsdVol.ParticleField3DGaussianSplat.Get(stage, "/scene/splat")
    for index, (x, y, z) in enumerate(GAUSSIANS.means.tolist()):
        if z < 0.1:
            continue
        seen = matrix.Transform(Gf.Vec3d(field.GetPositionsAttr().Get()[index]))
        expected = np.array([x, -y]) / z * CAMERA.focal_length_px / np.array([CAMERA.width / 2, CAMERA.height / 2])
        np.testing.assert_allclose([seen[0], seen[1]], expected, rtol=1e-4, atol=1e-4)
    # 36 mm is 0.36 tenths of a metre: that of an image of 1200 x 800 is as large as a frame of 35 mm film.
    assert camera.horizontalAperture == pytest.approx(0.36, rel=1e-4)


def test_the_extent_holds_three_standard_deviations(tmp_path: Path) -> None:
    stage = stage_of(written("usdz", GAUSSIANS), tmp_path)
    low, high = UsdVol.ParticleField3DGaussianSplat.Get(stage, "/scene/splat").GetExtentAttr().Get()
    axes = Rotation.from_quat(GAUSSIANS.quaternions_wxyz.numpy(), scalar_first=True).as_matrix() @ np.diag([1, 1, 1])
    reach = 3 * np.sqrt(np.einsum("nij,nj->ni", axes**2, GAUSSIANS.scales.numpy() ** 2))
    means = GAUSSIANS.means.numpy() * [1, -1, -1]
    assert ((means - reach).min(axis=0) >= np.array(low) - 1e-6).all()
    assert ((means + reach).max(axis=0) <= np.array(high) + 1e-6).all()


@pytest.mark.parametrize("degree", [0, 2, 4])
def test_spherical_harmonics_survive_up_to_degree_3(degree: int) -> None:
    gaussians = with_harmonics(GAUSSIANS, degree) if degree else GAUSSIANS
    splat = formats.read(written("usdz", gaussians))
    assert splat.camera == CAMERA
    seen = splat.gaussians
    if not degree:
        assert seen.harmonics is None
        return
    assert gaussians.harmonics is not None
    assert seen.harmonics is not None
    torch.testing.assert_close(seen.harmonics, gaussians.harmonics[:, :15], atol=1e-6, rtol=1 / 2048)
    colors = srgb_of(gaussians.colors_linear)
    np.testing.assert_allclose(srgb_of(seen.colors_linear), colors, atol=(np.abs(colors).max() + 0.5) / 2048)


def test_the_camera_and_the_frame_are_read_back() -> None:
    splat = formats.read(written("usdz", GAUSSIANS, center=True))
    assert splat.camera == CAMERA
    torch.testing.assert_close(splat.gaussians.means, GAUSSIANS.means, atol=2e-6, rtol=0)


def package(fill: Callable[[Any], None], folder: Path, *, format_: str = ".usda") -> bytes:
    """Return a .usdz that another tool could have written."""
    layer, path = folder / f"other{format_}", folder / "other.usdz"
    stage = Usd.Stage.CreateNew(str(layer))
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    fill(stage)
    stage.GetRootLayer().Save()
    assert UsdUtils.CreateNewUsdzPackage(str(layer), str(path))
    return path.read_bytes()


def one_gaussian(stage: Any, path: str = "/splat") -> Any:
    field = UsdVol.ParticleField3DGaussianSplat.Define(stage, path)
    field.CreatePositionsAttr(Vt.Vec3fArray([(1, 2, 3)]))
    field.CreateScalesAttr(Vt.Vec3fArray([(0.1, 0.2, 0.3)]))
    field.CreateOrientationsAttr(Vt.QuatfArray([Gf.Quatf(0.5, 0.5, 0.5, 0.5)]))
    field.CreateOpacitiesAttr([0.25])
    field.CreateRadianceSphericalHarmonicsDegreeAttr(0)
    field.CreateRadianceSphericalHarmonicsCoefficientsAttr(Vt.Vec3fArray([(0.5, 0.0, -0.5)]))
    return field


@pytest.mark.parametrize("up_axis", ["Y", "Z"])
def test_axes_units_and_transforms_of_other_tools_are_applied(up_axis: str, tmp_path: Path) -> None:
    """Centimetres, and a parent that moves by 10 and turns by 90 degrees about its z."""

    def fill(stage: Any) -> None:
        UsdGeom.SetStageUpAxis(stage, up_axis)
        UsdGeom.SetStageMetersPerUnit(stage, 0.01)
        parent = UsdGeom.Xform.Define(stage, "/parent")
        parent.AddTranslateOp().Set(Gf.Vec3d(10, 0, 0))
        parent.AddRotateZOp().Set(90)
        one_gaussian(stage, "/parent/splat")

    splat = formats.read(package(fill, tmp_path))
    moved = np.array([10 - 2, 1, 3]) * 0.01
    # z up: x, z, -y are x right, y up and z back. Then OpenCV's y is down and its z ahead.
    x, y, z = moved if up_axis == "Y" else moved[[0, 2, 1]] * [1, 1, -1]
    np.testing.assert_allclose(splat.gaussians.means[0], [x, -y, -z], atol=1e-6)
    np.testing.assert_allclose(splat.gaussians.scales[0], [0.001, 0.002, 0.003], rtol=1e-5)
    turns = Rotation.from_euler("x", 180, degrees=True)
    if up_axis == "Z":
        turns *= Rotation.from_euler("x", -90, degrees=True)
    expected = turns * Rotation.from_euler("z", 90, degrees=True) * Rotation.from_quat([0.5, 0.5, 0.5, 0.5])
    seen = splat.gaussians.quaternions_wxyz.numpy()
    assert degrees_between(seen, expected.as_quat(scalar_first=True)[None]).max() < 0.01
    assert splat.gaussians.opacities.tolist() == [0.25]
    np.testing.assert_allclose(srgb_of(splat.gaussians.colors_linear)[0], [0.641, 0.5, 0.359], atol=1e-3)
    assert splat.camera is None


def test_linear_colours_of_a_parent_are_read_as_such(tmp_path: Path) -> None:
    def fill(stage: Any) -> None:
        parent = UsdGeom.Xform.Define(stage, "/parent").GetPrim()
        Usd.ColorSpaceAPI.Apply(parent).CreateColorSpaceNameAttr("lin_rec709_scene")
        one_gaussian(stage, "/parent/splat")

    linear = formats.read(package(fill, tmp_path)).gaussians.colors_linear[0]
    np.testing.assert_allclose(linear, [0.641, 0.5, 0.359], atol=1e-3)


def test_values_that_a_file_leaves_out_are_those_of_the_schema(tmp_path: Path) -> None:
    def fill(stage: Any) -> None:
        field = UsdVol.ParticleField3DGaussianSplat.Define(stage, "/splat")
        field.CreatePositionshAttr(Vt.Vec3hArray([Gf.Vec3h(1, 2, 3), Gf.Vec3h(4, 5, 6)]))
        field.CreateOpacitiesAttr([0.5])

    gaussians = formats.read(package(fill, tmp_path)).gaussians
    np.testing.assert_array_equal(gaussians.means, [[1, -2, -3], [4, -5, -6]])
    np.testing.assert_array_equal(gaussians.scales, 1)
    np.testing.assert_array_equal(gaussians.opacities, 1)
    np.testing.assert_allclose(srgb_of(gaussians.colors_linear), 0.5, atol=1e-6)


def test_a_camera_of_another_tool_is_taken_with_an_assumed_height(tmp_path: Path) -> None:
    def fill(stage: Any) -> None:
        one_gaussian(stage)
        camera = UsdGeom.Camera.Define(stage, "/camera")
        camera.CreateHorizontalApertureAttr(36.0)
        camera.CreateVerticalApertureAttr(24.0)
        camera.CreateFocalLengthAttr(50.0)
        camera.AddTranslateOp().Set(Gf.Vec3d(1, 2, 5))

    splat = formats.read(package(fill, tmp_path))
    assert splat.camera is not None
    assert (splat.camera.width, splat.camera.height) == (1200, 800)
    assert splat.camera.focal_length_px == pytest.approx(50 / 24 * 800)
    np.testing.assert_allclose(splat.gaussians.means[0], [0, 0, 2], atol=1e-6)


def test_packages_without_splats_and_with_foreign_references_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SplatError, match="has no ParticleField3DGaussianSplat"):
        formats.read(package(lambda stage: UsdGeom.Mesh.Define(stage, "/mesh"), tmp_path))
    text = b'#usda 1.0\n(subLayers = [@/etc/passwd@])\ndef Xform "a" (references = @../other.usda@) {}\n'
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.usda", text)
    with pytest.raises(SplatError, match=r"refers to '(/etc/passwd|\.\./other\.usda)', which is not inside of it"):
        formats.read(file.getvalue())


def test_a_compressed_package_is_refused() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.usda", b"#usda 1.0\n" * 100)
    with pytest.raises(SplatError, match=r"a\.usda in the \.usdz is compressed or encrypted"):
        formats.read(file.getvalue())


def test_a_crash_of_openusd_is_a_broken_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "crash.py"
    program.write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    monkeypatch.setattr(usd_process, "__file__", str(program))
    with pytest.raises(SplatError, match=r"OpenUSD cannot read the \.usdz \(it ended with -11\)"):
        formats.read(written("usdz", GAUSSIANS))


def test_without_openusd_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    content = written("usdz", GAUSSIANS)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotInstalledError, match=r"\.usdz needs the extra 'usd': run .*\.\[usd\]"):
        formats.check(OutputOptions(output_format="usdz"))
    with pytest.raises(NotInstalledError, match="extra 'usd'"):
        formats.read(content)


def test_scales_beyond_half_floats_are_limited() -> None:
    gaussians = random_gaussians(2)
    gaussians.scales[:] = torch.tensor([[1e-9, 1.0, 1e7], [1e-4, 1e-3, 1e4]])
    seen = formats.read(written("usdz", gaussians)).gaussians.scales
    tolerance = TOLERANCES["usdz"]
    expected = gaussians.scales.clamp(tolerance.smallest_scale, tolerance.largest_scale)
    torch.testing.assert_close(seen, expected, rtol=1 / 2048, atol=0)

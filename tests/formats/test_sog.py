"""The parts of a .sog that test_registry.py does not see: precision, layout and limits."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from sharp_cog import formats
from sharp_cog.errors import OutputError, SplatError
from sharp_cog.formats import sog
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from tests.decoders import SH_C0
from tests.formats.cases import decode, written
from tests.formats.samples import ply_sample, sample
from tests.splats import CAMERA, degrees_between, random_gaussians, srgb_of, with_harmonics


def test_rare_scales_far_from_the_others_are_kept() -> None:
    """A sky of 400 m and a speck among 60,000 grains of nearly equal size."""
    gaussians = random_gaussians(60_000)
    gaussians.scales.copy_(torch.rand(60_000, 3) * 0.02 + 0.001)
    gaussians.scales[:3] = torch.tensor([[400.0, 30.0, 5.0], [120.0, 60.0, 9.0], [1e-8, 1e-7, 1e-6]])
    scales = decode("sog", written("sog", gaussians)).scales
    errors = np.abs(np.log(scales) - np.log(gaussians.scales.double().numpy()))
    assert errors.max() < np.log(400 / 1e-8) / 62
    assert np.median(errors) < 0.02


def test_positions_are_within_half_a_step() -> None:
    """On both sides of zero, where a difference of logarithms in float32 is rounded most."""
    means = np.random.default_rng(0).uniform(-6.2, 10.3, (30_000, 3)).astype(np.float32)
    gaussians = replace(random_gaussians(30_000), means=torch.from_numpy(means))
    decoded = decode("sog", written("sog", gaussians)).means
    stored, exact = (np.copysign(np.log1p(np.abs(values)), values) for values in (decoded, means.astype(np.float64)))
    # A logarithm in float32 has its own rounding; the rest is exact.
    assert np.abs(stored - exact).max() <= 0.5 * np.ptp(exact) / 65535 + np.finfo(np.float32).eps * np.abs(exact).max()


@pytest.mark.parametrize(
    ("count", "size"), [(0, (1, 1)), (1, (1, 1)), (768, (768, 1)), (769, (768, 2)), (4_000_000, (2000, 2000))]
)
def test_images_are_as_wide_as_sharps_layers_unless_they_become_too_tall(count: int, size: tuple[int, int]) -> None:
    assert sog._image_size(count) == size


def test_more_gaussians_than_pixels_are_refused() -> None:
    with pytest.raises(OutputError, match=r"holds 268402689: lower max_gaussians"):
        sog._image_size(16383**2 + 1)


def test_the_archive_holds_lossless_images_and_metadata() -> None:
    with zipfile.ZipFile(io.BytesIO(written("sog", random_gaussians(999), center=True))) as archive:
        names = archive.namelist()
        meta = json.loads(archive.read("meta.json"))
        for name in names[1:]:
            with Image.open(io.BytesIO(archive.read(name))) as image:
                assert (image.format, image.size) == ("WEBP", (768, 2))
    assert names == ["meta.json", "means_l.webp", "quats.webp", "sh0.webp", "scales.webp", "means_u.webp"]
    centre = np.median(random_gaussians(999).means.numpy(), axis=0)
    assert meta["frame"]["axes"] == "opencv"
    np.testing.assert_allclose(meta["frame"]["camera_position"], -centre, rtol=1e-6)
    camera = meta["camera"]
    assert (camera["convention"], camera["rig"]) == ("opencv", "camera")
    np.testing.assert_allclose(camera["rest"]["position"], -centre, rtol=1e-6)
    assert camera["rest"]["rotation"] == [0, 0, 0, 1]
    assert camera["intrinsics"] == {"fx": 1150.25, "fy": 1150.25, "cx": 600, "cy": 400, "width": 1200, "height": 800}


def test_a_sog_of_splat_transform_is_read_as_splat_transform_reads_it() -> None:
    expected = ply_sample("palette.ply")
    gaussians = formats.read(sample("palette.sog")).gaussians
    np.testing.assert_allclose(gaussians.means, expected.means, atol=5e-6)
    np.testing.assert_allclose(gaussians.scales, expected.scales, rtol=1e-5)
    assert degrees_between(gaussians.quaternions_wxyz.numpy(), expected.wxyz).max() < 0.01
    np.testing.assert_allclose(srgb_of(gaussians.colors_linear), expected.srgb, atol=2e-6)
    np.testing.assert_allclose(gaussians.opacities, expected.opacities, atol=1e-6)
    assert gaussians.harmonics is not None
    np.testing.assert_allclose(gaussians.harmonics, expected.harmonics, atol=1e-6)


def members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def edited(content: bytes, edit: Callable[[dict[str, Any]], object]) -> bytes:
    """Return a .sog with changed metadata."""
    files = members(content)
    meta = json.loads(files["meta.json"])
    edit(meta)
    return zipped({**files, "meta.json": json.dumps(meta).encode()})


def version_1(gaussians: Gaussians) -> bytes:
    """Return a SOG of version 1, whose channels have ranges in place of codebooks."""
    files = members(written("sog", gaussians))
    meta = json.loads(files["meta.json"])
    count = len(gaussians)

    def quantised(values: np.ndarray) -> tuple[bytes, dict[str, Any]]:
        low, high = values.min(axis=0), values.max(axis=0)
        codes = np.rint((values - low) / (high - low) * 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(codes.reshape(1, count, -1)).save(file, "WEBP", lossless=True, exact=True)
        return file.getvalue(), {"mins": low.tolist(), "maxs": high.tolist(), "shape": [count, values.shape[1]]}

    srgb = srgb_of(gaussians.colors_linear)
    logits = gaussians.opacities.logit().double().numpy()
    files["scales.webp"], scales = quantised(np.log(gaussians.scales.double().numpy()))
    files["sh0.webp"], colors = quantised(np.column_stack([(srgb - 0.5) / SH_C0, logits]))
    files["meta.json"] = json.dumps(
        {
            "means": {**meta["means"], "shape": [count, 3]},
            "scales": {**scales, "files": ["scales.webp"]},
            "quats": {**meta["quats"], "shape": [count, 4], "encoding": "quaternion_packed"},
            "sh0": {**colors, "files": ["sh0.webp"]},
        }
    ).encode()
    return zipped(files)


def test_version_1_is_read() -> None:
    gaussians = random_gaussians(64)
    gaussians.opacities.clamp_(0.02, 0.98)
    seen = formats.read(version_1(gaussians)).gaussians
    assert (seen.means - gaussians.means).abs().max() < 1e-3
    half_step = np.ptp(np.log(gaussians.scales.numpy())) / 510
    assert (seen.scales.log() - gaussians.scales.log()).abs().max() <= half_step * 1.01
    assert np.abs(srgb_of(seen.colors_linear) - srgb_of(gaussians.colors_linear)).max() < 0.51 / 255
    assert (seen.opacities - gaussians.opacities).abs().max() < 0.01
    assert degrees_between(seen.quaternions_wxyz.numpy(), gaussians.quaternions_wxyz.numpy()).max() < 1.2


def test_a_folder_is_read_by_its_metadata(tmp_path: Path) -> None:
    content = written("sog", random_gaussians(20))
    for name, member in members(content).items():
        (tmp_path / name).write_bytes(member)
    expected = formats.read(content)
    seen = formats.read(tmp_path / "meta.json")
    assert seen.camera == expected.camera == CAMERA
    torch.testing.assert_close(seen.gaussians.means, expected.gaussians.means, rtol=0, atol=0)
    (tmp_path / "quats.webp").unlink()
    with pytest.raises(SplatError, match=r"quats\.webp cannot be read: No such file"):
        formats.read(tmp_path / "meta.json")


@pytest.mark.parametrize("name", ["../quats.webp", "/etc/passwd", "a/quats.webp", "..", r"c:\quats.webp"])
def test_metadata_cannot_name_files_elsewhere(name: str, tmp_path: Path) -> None:
    meta = json.loads(members(written("sog", random_gaussians(2)))["meta.json"])
    meta["means"]["files"][0] = name
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(SplatError, match="not the name of a file beside it"):
        formats.read(tmp_path / "meta.json")


def test_a_zip_of_the_folder_and_a_deflated_one_are_read() -> None:
    content = written("sog", random_gaussians(20))
    inside = {f"scene/{name}": member for name, member in members(content).items()}
    for other in (zipped(inside), zipped(members(content), zipfile.ZIP_DEFLATED)):
        assert formats.detect(other) == "sog"
        torch.testing.assert_close(formats.read(other).gaussians.means, formats.read(content).gaussians.means)


def test_a_codebook_without_its_first_level_is_continued() -> None:
    """Early writers left it out, and PlayCanvas' engine takes the mean distance of the others."""
    content = written("sog", random_gaussians(400))
    expected = members(content)
    first = np.array(json.loads(expected["meta.json"])["scales"]["codebook"])
    seen = formats.read(edited(content, lambda meta: meta["scales"]["codebook"].__setitem__(0, None))).gaussians
    least = np.log(seen.scales.numpy()).min()
    assert least == pytest.approx(first[1] + (first[1] - first[255]) / 255, rel=1e-5)


@pytest.mark.parametrize("axes", ["opencv", "opengl"])
@pytest.mark.parametrize("center", [False, True])
def test_the_frame_and_the_camera_are_read_back(axes: str, center: bool) -> None:
    gaussians = random_gaussians(50)
    content = written("sog", gaussians, axes=axes, center=center)
    # Without our own field, the camera's pose says the same.
    for other in (content, edited(content, lambda meta: meta.pop("frame"))):
        splat = formats.read(other)
        assert splat.camera == CAMERA
        assert (splat.gaussians.means - gaussians.means).abs().max() < 1e-3
        angles = degrees_between(splat.gaussians.quaternions_wxyz.numpy(), gaussians.quaternions_wxyz.numpy())
        assert angles.max() < 1.2


def test_a_camera_of_another_program_may_look_anywhere() -> None:
    """A camera at (1, 2, 3) that looks along +x, whose down is +z."""

    def look(meta: dict[str, Any]) -> None:
        matrix = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]])
        rotation = Rotation.from_matrix(matrix).as_quat().tolist()
        meta["camera"] = {
            "convention": "opencv",
            "rest": {"position": [1, 2, 3], "rotation": rotation},
            "intrinsics": {"fx": 500.0, "fy": 500.0, "cx": 320, "cy": 240, "width": 640, "height": 480},
        }
        del meta["frame"]

    gaussians = random_gaussians(50)
    splat = formats.read(edited(written("sog", gaussians), look))
    assert splat.camera == Camera(width=640, height=480, focal_length_px=500.0)
    # Ahead of that camera is +x, to its right +y, and below it +z.
    expected = (gaussians.means - torch.tensor([1.0, 2.0, 3.0]))[:, [1, 2, 0]]
    assert (splat.gaussians.means - expected).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda meta: meta.update(version=3), "version 3"),
        (lambda meta: meta.update(count=10**12), "promises 1000000000000 Gaussians, the limit is 10000000"),
        (lambda meta: meta.update(count=-1), "number of Gaussians is -1"),
        (lambda meta: meta.update(count="9"), "number of Gaussians is '9'"),
        (lambda meta: meta.update(count=770), "an image of means has 768 pixels for 770 Gaussians"),
        (lambda meta: meta.pop("quats"), "has no quats"),
        (lambda meta: meta["means"].update(mins=[0, 1]), "mins of means is no list of 3 numbers"),
        (lambda meta: meta["means"].update(maxs=[0, 1, 1e40]), "maxs of means is no list of 3 numbers"),
        (lambda meta: meta["means"].update(maxs=[0, 1, float("nan")]), "maxs of means is no list"),
        (lambda meta: meta["means"].update(maxs=[0, 1, 200]), "not finite, in means"),
        (lambda meta: meta["scales"].update(codebook=["a"] * 256), "codebook of scales is no list"),
        (lambda meta: meta["sh0"].update(files=[]), "sh0 does not name 1 files"),
        (lambda meta: meta["sh0"].update(files=["none.webp"]), r"no none\.webp"),
        (lambda meta: meta["sh0"].update(files=["meta.json"]), r"meta\.json of the \.sog cannot be decoded"),
        (lambda meta: meta["camera"]["intrinsics"].update(fx=-1), "camera in the .sog cannot be read"),
        (lambda meta: meta["frame"].update(camera_position=[0, 0]), "pose in the .sog cannot be read"),
    ],
)
def test_broken_metadata_is_refused(edit: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(SplatError, match=message):
        formats.read(edited(written("sog", random_gaussians(768)), edit))


def test_an_image_far_larger_than_the_splat_is_not_decoded() -> None:
    files = members(written("sog", random_gaussians(3)))
    file = io.BytesIO()
    Image.new("RGB", (4000, 4000)).save(file, "WEBP", lossless=True)
    files["scales.webp"] = file.getvalue()
    assert len(file.getvalue()) < 10_000
    with pytest.raises(SplatError, match=r"scales\.webp has 4000 x 4000 pixels for 3 Gaussians"):
        formats.read(zipped(files))


def test_an_unknown_index_of_a_quaternion_is_no_rotation() -> None:
    files = members(written("sog", random_gaussians(2)))
    file = io.BytesIO()
    Image.fromarray(np.array([[[9, 99, 200, 251], [127, 127, 127, 255]]], dtype=np.uint8)).save(
        file, "WEBP", lossless=True, exact=True
    )
    files["quats.webp"] = file.getvalue()
    quaternions = formats.read(zipped(files)).gaussians.quaternions_wxyz
    np.testing.assert_allclose(quaternions.abs(), [[1, 0, 0, 0], [0, 0, 0, 1]], atol=0.01)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_spherical_harmonics_of_few_gaussians_are_all_in_the_palette(degree: int) -> None:
    gaussians = with_harmonics(random_gaussians(300), degree)
    content = written("sog", gaussians)
    meta = json.loads(members(content)["meta.json"])
    assert (meta["shN"]["count"], meta["shN"]["bands"]) == (300, min(degree, 3))
    seen = formats.read(content).gaussians.harmonics
    assert gaussians.harmonics is not None
    assert seen is not None
    errors = (seen - gaussians.harmonics[:, :15]).abs()
    # No level of a codebook covers more than 1 / 62 of the range.
    assert errors.max() < np.ptp(gaussians.harmonics.numpy()) / 62
    assert errors.median() < 0.005


def test_a_palette_has_the_means_of_near_harmonics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen kinds of harmonics with a little noise are found by 16 entries."""
    monkeypatch.setattr(sog, "MAX_PALETTE", 16)
    generator = np.random.default_rng(0)
    kinds = generator.normal(size=(16, 24)).astype(np.float32)
    kind = generator.integers(0, 16, 5000)
    values = kinds[kind] + generator.normal(size=(5000, 24)).astype(np.float32) * 0.01
    labels, palette = sog._fit_palette(values)
    assert len(palette) <= 16
    assert np.sqrt(((palette[labels] - values) ** 2).mean()) < 0.5 * values.std()
    np.testing.assert_allclose(palette[3], values[labels == 3].mean(axis=0), atol=1e-5)

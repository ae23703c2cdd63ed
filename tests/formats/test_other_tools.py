"""Files exchanged with other tools: gsply, PlayCanvas' splat-transform, and Khronos' validator of glTF.

The tests of the last two are slow: npm installs the tools into a temporary folder.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import gsply
import numpy as np
import pytest

from sharp_cog import formats
from sharp_cog.config.options import OutputOptions
from sharp_cog.formats import FORMATS, read
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.preview.render import render
from sharp_cog.preview.view import View
from tests import decoders
from tests.decoders import Decoded
from tests.formats.cases import SPZ, TOLERANCES, as_opencv, assert_same, decode_as_stored, options, order_in_file
from tests.splats import CAMERA, degrees_between, random_gaussians, srgb_of, with_harmonics

DATA = Path(__file__).parents[1] / "data" / "splats"
PACKAGES = ("@playcanvas/splat-transform@3.7.0", "gltf-validator@2.0.0-dev.3.10")
VALIDATE = """
const { validateBytes } = require('gltf-validator');
const content = new Uint8Array(require('fs').readFileSync(process.argv[2]));
validateBytes(content).then((report) => console.log(JSON.stringify(report)));
"""
EXPECTED_MESSAGES = {
    # This version of the validator knows neither the extension nor attributes with colons in their names.
    "UNSUPPORTED_EXTENSION",
    "MESH_PRIMITIVE_INVALID_ATTRIBUTE",
    # A splat without Gaussians is a node without a mesh.
    "NODE_EMPTY",
}


def test_files_of_others_hold_the_same_scene() -> None:
    """One scene with harmonics of degree 3, as .compressed.ply and as .spz whose extension names the axes."""
    compressed = read(DATA / "sh3.compressed.ply").gaussians
    spz = read(DATA / "spz4_coordinate_system_RDF.spz")
    assert spz.notes == ()
    assert compressed.degree == spz.gaussians.degree == 3
    order = [int((spz.gaussians.means - mean).abs().sum(dim=1).argmin()) for mean in compressed.means]
    assert len(set(order)) == 2000
    matched = spz.gaussians.map(lambda tensor: tensor[order])
    np.testing.assert_allclose(matched.means, compressed.means, atol=0.002)
    assert matched.harmonics is not None
    assert compressed.harmonics is not None
    assert (matched.harmonics - compressed.harmonics).abs().max() < 1 / 16 + 1 / 64 + 1e-4
    view = View(width=96, height=64, focal_length_px=100.0)
    images = [render(gaussians, view)[0].astype(float) for gaussians in (matched, compressed)]
    flat = render(replace(compressed, harmonics=None), view)[0].astype(float)
    # Niantic's 4 bits of the higher harmonics make the difference.
    assert np.abs(images[0] - images[1]).mean() < 4 < np.abs(images[0] - flat).mean() / 2


def test_flags_and_a_missing_compression_are_told_or_read() -> None:
    crafted = read(DATA / "spz3_flag_lod_crafted.spz", axes="opencv")
    assert "flags that are unknown here (0x80)" in crafted.notes[0]
    plain = read(DATA / "raw_v2.spz").gaussians
    assert len(plain) == 4
    np.testing.assert_allclose(plain.means.abs().sum(dim=1).sort().values, [0, 1, 1, 2], atol=1e-6)
    assert "nothing lies ahead" in read(DATA / "spz4_by_splat_transform_3.7.0_RDF.spz").notes[0]


@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("case", ["ply", "compressed_ply"])
def test_gsply_reads_our_harmonics(case: str, degree: int, tmp_path: Path) -> None:
    gaussians, path = with_harmonics(random_gaussians(257), degree), tmp_path / "splat.ply"
    formats.write(path, gaussians, CAMERA, options(case))
    data = gsply.plyread(path)
    assert gaussians.harmonics is not None
    order = order_in_file(case, np.asarray(data.means, dtype=float), gaussians.means.double().numpy())
    error = np.abs(np.asarray(data.shN).reshape(257, -1, 3) - gaussians.harmonics.numpy()[order])
    assert error.max() <= (1e-6 if case == "ply" else 1 / 64 + 1e-5)


@pytest.mark.parametrize("more", [{"normals": True}, {"normals": True, "sh_degree": 3}])
def test_gsply_reads_the_additions_for_older_programs(more: dict[str, object], tmp_path: Path) -> None:
    gaussians, path = random_gaussians(257), tmp_path / "splat.ply"
    formats.write(path, gaussians, CAMERA, options("ply", **more))
    np.testing.assert_allclose(gsply.plyread(path).means, gaussians.means, rtol=1e-6)


@pytest.mark.parametrize("case", ["ply", "compressed_ply", "spz", "spz4"])
def test_gsply_reads_our_files(case: str, tmp_path: Path) -> None:
    gaussians, path = random_gaussians(257), tmp_path / "splat"
    formats.write(path, gaussians, CAMERA, options(case))
    data = gsply.read_spz(path) if case.startswith("spz") else gsply.plyread(path)
    opacity_logits = np.asarray(data.opacities, dtype=float).reshape(-1)
    decoded = Decoded(
        means=np.asarray(data.means, dtype=float),
        scales=np.exp(np.asarray(data.scales, dtype=float)),
        wxyz=np.asarray(data.quats, dtype=float),
        srgb=np.asarray(data.sh0, dtype=float).reshape(-1, 3) * decoders.SH_C0 + 0.5,
        opacities=1 / (1 + np.exp(-opacity_logits)),
    )
    assert_same(case, as_opencv(case, decoded), gaussians)


@pytest.fixture(scope="module")
def npm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("npm")
    command = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", *PACKAGES]
    subprocess.run(command, check=True, capture_output=True, timeout=500)
    return folder


def splat_transform(npm: Path, source: Path, target: Path) -> Path:
    program = npm / "node_modules" / "@playcanvas" / "splat-transform" / "bin" / "cli.mjs"
    command = ["node", str(program), "-w", "-g", "cpu", str(source), str(target)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return target


@pytest.fixture(params=[1, 257, 5000])
def gaussians(request: pytest.FixtureRequest) -> Gaussians:
    num: int = request.param
    return random_gaussians(num)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", ["ply", "compressed_ply", "splat", "spz", "spz4", "sog"])
def test_splat_transform_reads_our_files(case: str, gaussians: Gaussians, npm: Path, tmp_path: Path) -> None:
    written = options(case)
    path = tmp_path / f"ours{FORMATS[written.output_format].suffix}"
    formats.write(path, gaussians, CAMERA, written)
    # splat-transform does not convert axes, not even those of .spz.
    seen = as_opencv(case, decoders.ply(splat_transform(npm, path, tmp_path / "theirs.ply").read_bytes()))
    if case != "splat":
        assert_same(case, seen, gaussians)
        return
    order = order_in_file(case, seen.means, gaussians.means.double().numpy())
    # splat-transform decodes the bytes of quaternions with an offset of 127.5, antimatter15 with 128.
    assert degrees_between(seen.wxyz, gaussians.quaternions_wxyz.numpy()[order]).max() < 1.8
    np.testing.assert_allclose(seen.means, gaussians.means.numpy()[order], atol=2e-6)
    np.testing.assert_allclose(seen.scales, gaussians.scales.numpy()[order], rtol=2e-5)
    assert np.abs(seen.srgb - srgb_of(gaussians.colors_linear)[order]).max() < TOLERANCES["splat"].color
    assert np.abs(seen.opacities - gaussians.opacities.numpy()[order]).max() < TOLERANCES["splat"].opacity


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("suffix", "case"), [(".compressed.ply", "compressed_ply"), (".spz", "spz4")])
def test_files_of_splat_transform_are_read(
    suffix: str, case: str, gaussians: Gaussians, npm: Path, tmp_path: Path
) -> None:
    source = tmp_path / "ours.ply"
    formats.write(source, gaussians, CAMERA, OutputOptions())
    theirs = splat_transform(npm, source, tmp_path / f"theirs{suffix}")
    # A .spz from splat-transform has the axes of its source.
    splat = read(theirs, axes="opencv")
    seen = decode_as_stored(case, theirs.read_bytes())
    np.testing.assert_allclose(splat.gaussians.means, seen.means, atol=2e-6)
    nearest = [float(np.abs(gaussians.means.numpy() - mean).max(axis=1).min()) for mean in seen.means]
    assert max(nearest) <= (SPZ.metres * 1.01 if case == "spz4" else 0.02)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("num", [0, 1, 257])
def test_khronos_validator_reports_no_fault(num: int, npm: Path, tmp_path: Path) -> None:
    path = tmp_path / "splat.glb"
    formats.write(path, random_gaussians(num), CAMERA, OutputOptions(output_format="glb"))
    (npm / "validate.cjs").write_text(VALIDATE)
    command = ["node", str(npm / "validate.cjs"), str(path)]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)
    messages = report["issues"]["messages"]
    faults = [message for message in messages if message["code"] not in EXPECTED_MESSAGES]
    assert faults == []
    about = {message["pointer"].rpartition("/")[2] for message in messages if message["severity"] == 0}
    assert all(name.startswith("KHR_gaussian_splatting:") for name in about)

"""Every format against PlayCanvas' splat-transform, and .glb against Khronos' validator: `scripts/test -m slow`.

They come by npm, into a temporary folder.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from sharp_cog import formats
from sharp_cog.config.options import OutputOptions
from sharp_cog.formats import FORMATS, read
from sharp_cog.geometry.gaussians import Gaussians
from tests import decoders
from tests.formats.test_formats import SPZ, TOLERANCES, as_opencv, assert_same, decode, options, order_in_file
from tests.splats import CAMERA, degrees_between, random_gaussians, srgb_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PACKAGES = ("@playcanvas/splat-transform@3.7.0", "gltf-validator@2.0.0-dev.3.10")
VALIDATE = """
const { validateBytes } = require('gltf-validator');
const content = new Uint8Array(require('fs').readFileSync(process.argv[2]));
validateBytes(content).then((report) => console.log(JSON.stringify(report)));
"""
# The validator of that version does not know the extension, nor colons in names that it does not know.
UNKNOWN_TO_IT = {"UNSUPPORTED_EXTENSION", "MESH_PRIMITIVE_INVALID_ATTRIBUTE"}
# A splat without Gaussians is a node without a mesh, of which it informs.
FINE = {"NODE_EMPTY"}


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


@pytest.mark.parametrize("case", ["ply", "compressed_ply", "splat", "spz", "spz4", "sog"])
def test_splat_transform_reads_what_we_write(case: str, gaussians: Gaussians, npm: Path, tmp_path: Path) -> None:
    written = options(case)
    path = tmp_path / f"ours{FORMATS[written.output_format].suffix}"
    formats.write(path, gaussians, CAMERA, written)
    # It takes coordinates as they are, those of .spz too.
    seen = as_opencv(case, decoders.ply(splat_transform(npm, path, tmp_path / "theirs.ply").read_bytes()))
    order = order_in_file(case, seen, gaussians)
    if case != "splat":
        assert_same(case, seen, gaussians, order)
        return
    # It reads bytes of quaternions with zero at 127.5, where antimatter15 has it at 128.
    assert degrees_between(seen.wxyz, gaussians.quaternions_wxyz.numpy()[order]).max() < 1.8
    np.testing.assert_allclose(seen.means, gaussians.means.numpy()[order], atol=2e-6)
    np.testing.assert_allclose(seen.scales, gaussians.scales.numpy()[order], rtol=2e-5)
    assert np.abs(seen.srgb - srgb_of(gaussians.colors_linear)[order]).max() < TOLERANCES["splat"].color
    assert np.abs(seen.opacities - gaussians.opacities.numpy()[order]).max() < TOLERANCES["splat"].opacity


@pytest.mark.parametrize(("suffix", "case"), [(".compressed.ply", "compressed_ply"), (".spz", "spz4")])
def test_we_read_what_splat_transform_writes(
    suffix: str, case: str, gaussians: Gaussians, npm: Path, tmp_path: Path
) -> None:
    source = tmp_path / "ours.ply"
    formats.write(source, gaussians, CAMERA, OutputOptions())
    theirs = splat_transform(npm, source, tmp_path / f"theirs{suffix}")
    # What it writes as .spz has the axes of its source.
    splat = read(theirs, axes="opencv")
    seen = decode(case, theirs.read_bytes())
    np.testing.assert_allclose(splat.gaussians.means, seen.means, atol=2e-6)
    nearest = [float(np.abs(gaussians.means.numpy() - mean).max(axis=1).min()) for mean in seen.means]
    assert max(nearest) <= (SPZ.metres * 1.01 if case == "spz4" else 0.02)


@pytest.mark.parametrize("num", [0, 1, 257])
def test_khronos_validator_finds_no_fault(num: int, npm: Path, tmp_path: Path) -> None:
    path = tmp_path / "splat.glb"
    formats.write(path, random_gaussians(num), CAMERA, OutputOptions(output_format="glb"))
    (npm / "validate.cjs").write_text(VALIDATE)
    command = ["node", str(npm / "validate.cjs"), str(path)]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)
    messages = report["issues"]["messages"]
    faults = [message for message in messages if message["code"] not in UNKNOWN_TO_IT | FINE]
    assert faults == []
    about = {message["pointer"].rpartition("/")[2] for message in messages if message["severity"] == 0}
    assert all(name.startswith("KHR_gaussian_splatting:") for name in about)

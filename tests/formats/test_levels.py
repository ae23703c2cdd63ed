"""Levels of detail: the tree against exact geometry, the units against the simplified Gaussians, and older folders."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sharp_cog import formats
from sharp_cog.config.options import OutputOptions
from sharp_cog.errors import OptionError, OutputError, SplatError
from sharp_cog.formats import levels
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.simplify import simplify
from tests.splats import CAMERA, gaussians_in_front, random_gaussians, with_harmonics

COUNT = 5000
COUNTS = [5000, 1250, 312]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let few Gaussians fill a leaf and a folder, so that a small scene has many."""
    monkeypatch.setattr(levels, "LEAF_GAUSSIANS", 200)
    monkeypatch.setattr(levels, "UNIT_GAUSSIANS", 1000)


def write(folder: Path, gaussians: Gaussians, **options: Any) -> Path:
    return formats.write(folder / "lod-meta.json", gaussians, CAMERA, OutputOptions(output_format="sog", **options))


def leaves(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if "lods" in node:
        yield node
    for child in node.get("children", []):
        assert np.all(np.array(child["bound"]["min"]) >= node["bound"]["min"])
        assert np.all(np.array(child["bound"]["max"]) <= node["bound"]["max"])
        yield from leaves(child)


@pytest.mark.usefixtures("small_parts")
def test_each_level_holds_the_simplified_gaussians_in_boxes_that_contain_them(tmp_path: Path) -> None:
    gaussians = gaussians_in_front(COUNT)
    path = write(tmp_path / "scene", gaussians, lod=3)
    meta = json.loads(path.read_text())
    assert (meta["version"], meta["lodLevels"], meta["counts"], meta["count"]) == (1, 3, COUNTS, sum(COUNTS))
    units = [formats.read(path.parent / name).gaussians for name in meta["filenames"]]
    found: list[list[np.ndarray]] = [[], [], []]
    ends = dict.fromkeys(range(len(units)), 0)
    nodes = list(leaves(meta["tree"]))
    assert 8 <= len(nodes) <= COUNT / 200
    assert len(units) > 5
    for node in nodes:
        for level, place in node["lods"].items():
            assert meta["filenames"][place["file"]].startswith(f"{level}_")
            assert place["offset"] == ends[place["file"]]
            ends[place["file"]] += place["count"]
            part = units[place["file"]].map(lambda tensor, place=place: tensor[place["offset"] :][: place["count"]])
            rotations = Rotation.from_quat(part.quaternions_wxyz.numpy(), scalar_first=True).as_matrix()
            covariances = rotations @ (part.scales.double().numpy()[..., None] ** 2 * rotations.transpose(0, 2, 1))
            deviations = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
            # A .sog rounds positions, scales and rotations.
            slack = 0.02 + 0.1 * deviations
            means = part.means.numpy()
            assert (means - 3 * deviations >= np.array(node["bound"]["min"]) - slack).all()
            assert (means + 3 * deviations <= np.array(node["bound"]["max"]) + slack).all()
            found[int(level)].append(means)
    assert ends == {index: len(unit) for index, unit in enumerate(units)}
    for count, parts in zip(COUNTS, found, strict=True):
        expected = simplify(gaussians, max_gaussians=count).means.double().numpy()
        means = np.concatenate(parts).astype(float)
        assert len(means) == count
        nearest = [np.abs(means - mean).max(axis=1).min() for mean in expected[:300]]
        assert max(nearest) < 0.01


def test_boxes_enclose_three_deviations() -> None:
    gaussians = random_gaussians(50)
    rotations = Rotation.from_quat(gaussians.quaternions_wxyz.double().numpy(), scalar_first=True).as_matrix()
    axes = rotations * gaussians.scales.double().numpy()[:, None]
    deviations = np.sqrt(np.square(axes).sum(axis=2))
    boxes = levels.boxes_of(gaussians)
    np.testing.assert_allclose(boxes[:, 1] - boxes[:, 0], 6 * deviations, rtol=1e-5)
    np.testing.assert_allclose(boxes.mean(axis=1), gaussians.means, rtol=1e-6)


@pytest.mark.usefixtures("small_parts")
def test_the_finest_level_is_read_with_the_camera(tmp_path: Path) -> None:
    gaussians = with_harmonics(gaussians_in_front(COUNT), 1)
    path = write(tmp_path, gaussians, axes="opengl", center=True)
    assert len(json.loads(path.read_text())["counts"]) == 4
    splat = formats.read(path)
    assert splat.camera is not None
    assert (splat.camera.width, splat.camera.focal_length_px) == (1200, 1150.25)
    assert splat.gaussians.degree == 1
    assert len(splat.gaussians) == COUNT
    for axis in range(3):
        np.testing.assert_allclose(
            splat.gaussians.means[:, axis].sort().values, gaussians.means[:, axis].sort().values, atol=0.01
        )


@pytest.mark.usefixtures("small_parts")
def test_an_older_one_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path, gaussians_in_front(COUNT))
    (tmp_path / "0_1" / "notes.txt").write_text("mine")
    assert (tmp_path / "0_3").is_dir()
    write(tmp_path, gaussians_in_front(100), lod=2)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0_0", "0_1", "1_0", "lod-meta.json"]
    assert [file.name for file in (tmp_path / "0_1").iterdir()] == ["notes.txt"]
    assert len(formats.read(path).gaussians) == 100
    assert formats.size_with_levels(path) == sum(
        file.stat().st_size for file in tmp_path.rglob("*") if file.is_file() and file.name != "notes.txt"
    )
    path.unlink()
    with pytest.raises(OutputError, match="0_0 exists and is no part of"):
        write(tmp_path, gaussians_in_front(100))


def test_a_failure_leaves_the_older_one(tmp_path: Path) -> None:
    path = write(tmp_path, gaussians_in_front(100))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    bad = gaussians_in_front(100)
    bad.colors_linear[3] = float("nan")
    with pytest.raises(Exception, match="not finite"):
        write(tmp_path, bad)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    assert len(formats.read(path).gaussians) == 100


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"lod is 3, but spz has no levels of detail: .* the output lod-meta\.json"):
        OutputOptions(output_format="spz", lod=3)
    with pytest.raises(OptionError, match=r"room\.sog is one file: leave it out, or name the output lod-meta\.json"):
        formats.write(tmp_path / "room.sog", gaussians_in_front(9), None, OutputOptions(output_format="sog", lod=3))
    with pytest.raises(OutputError, match="at least one"):
        write(tmp_path, random_gaussians(0))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 2}, "has version 2"),
        ({"filenames": ["../0_0/meta.json"]}, "outside of its folder"),
        ({"filenames": []}, "is broken"),
        ({"tree": {}}, "has no level 0"),
        ({"tree": []}, "is broken"),
    ],
)
def test_broken_files_are_refused(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    path = write(tmp_path, gaussians_in_front(9))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SplatError, match=match):
        formats.read(path)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("small_parts")
@pytest.mark.skipif(shutil.which("npx") is None, reason="splat-transform needs Node.js")
def test_splat_transform_reads_each_level(tmp_path: Path) -> None:
    gaussians = gaussians_in_front(COUNT)
    path = write(tmp_path / "scene", gaussians, lod=3)
    for level, count in enumerate(COUNTS):
        target = tmp_path / f"{level}.ply"
        program = ["npx", "--yes", "@playcanvas/splat-transform@3.7.0", "-w", "-g", "cpu", "-L", str(level)]
        subprocess.run([*program, str(path), str(target)], check=True, capture_output=True, timeout=300)
        theirs = formats.read(target, axes="opencv").gaussians.means.sort(dim=0).values
        expected = simplify(gaussians, max_gaussians=count).means.sort(dim=0).values
        np.testing.assert_allclose(theirs, expected, atol=0.01)

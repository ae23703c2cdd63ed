"""The checks that the two kinds of Gaussians make of their shapes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from sharp_cog.geometry.gaussians import NDCGaussians
from tests.splats import random_gaussians, with_harmonics


def test_a_scene_knows_its_number_of_gaussians() -> None:
    assert len(random_gaussians(5)) == 5
    assert len(random_gaussians(0)) == 0


@pytest.mark.parametrize(
    ("field", "shape", "message"),
    [
        ("means", (1, 5, 3), r"means has shape \(1, 5, 3\), expected 2 dimensions"),
        ("scales", (4, 3), r"scales has shape \(4, 3\), expected \(5, 3\)"),
        ("quaternions_wxyz", (5, 3), r"quaternions_wxyz has shape \(5, 3\), expected \(5, 4\)"),
        ("opacities", (5, 1), r"opacities has shape \(5, 1\), expected \(5,\)"),
        ("harmonics", (5, 9, 3), r"harmonics has shape \(5, 9, 3\), expected \(5, 3, 8, 15 or 24, 3\)"),
        ("harmonics", (4, 15, 3), r"harmonics has shape \(4, 15, 3\), expected \(5, 3, 8, 15 or 24, 3\)"),
    ],
)
def test_shapes_that_do_not_agree_are_refused(field: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(random_gaussians(5), **{field: torch.zeros(shape)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_scene_is_float32(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"opacities is torch.float\d+, Gaussians are torch.float32"):
        replace(random_gaussians(5), opacities=torch.zeros(5, dtype=dtype))


@pytest.mark.parametrize(("degree", "num_bands"), [(0, 0), (1, 3), (2, 8), (3, 15), (4, 24)])
def test_a_scene_knows_its_degree_and_maps_all_of_its_tensors(degree: int, num_bands: int) -> None:
    scene = with_harmonics(random_gaussians(5), degree) if degree else random_gaussians(5)
    assert scene.degree == degree
    assert ("harmonics" in scene.tensors()) == bool(degree)
    kept = scene.map(lambda tensor: tensor[1:3])
    assert len(kept) == 2
    if degree:
        assert scene.harmonics is not None
        assert kept.harmonics is not None
        assert scene.harmonics.shape == (5, num_bands, 3)
        assert torch.equal(kept.harmonics, scene.harmonics[1:3])
    with pytest.raises(ValueError, match=r"harmonics is torch\.float64"):
        replace(scene, harmonics=torch.zeros(5, 3, 3, dtype=torch.float64))


def test_gaussians_of_a_predictor_come_in_batches() -> None:
    scene = random_gaussians(5)
    fields = {
        name: getattr(scene, name) for name in ("means", "scales", "quaternions_wxyz", "colors_linear", "opacities")
    }
    assert NDCGaussians(**{name: value.unsqueeze(0) for name, value in fields.items()}).means.shape == (1, 5, 3)
    with pytest.raises(ValueError, match="expected 3 dimensions"):
        NDCGaussians(**fields)


def test_the_module_does_not_import_torch() -> None:
    script = "import sys, sharp_cog.geometry.gaussians; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0

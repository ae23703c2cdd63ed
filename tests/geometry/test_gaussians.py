"""The checks that the two kinds of Gaussians make of their shapes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from sharp_cog.geometry.gaussians import NDCGaussians
from tests.splats import random_gaussians


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
    ],
)
def test_shapes_that_do_not_agree_are_refused(field: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(random_gaussians(5), **{field: torch.zeros(shape)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_scene_is_float32(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"opacities is torch.float\d+, Gaussians are torch.float32"):
        replace(random_gaussians(5), opacities=torch.zeros(5, dtype=dtype))


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

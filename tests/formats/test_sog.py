"""The parts of a .sog that test_registry.py does not see: precision, layout and limits."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sharp_cog.errors import OutputError
from sharp_cog.formats import sog
from tests.formats.cases import decode, written
from tests.splats import random_gaussians


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
    assert meta["camera"] == {"focal_length_px": 1150.25, "image_size": [1200, 800]}
    centre = np.median(random_gaussians(999).means.numpy(), axis=0)
    assert meta["frame"]["axes"] == "opencv"
    np.testing.assert_allclose(meta["frame"]["camera_position"], -centre, rtol=1e-6)

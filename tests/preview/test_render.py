"""The example splat, rendered from the photograph's view and from aside."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from sharp_cog import formats
from sharp_cog.depth import maps
from sharp_cog.errors import NotInstalledError
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.simplify import simplify
from sharp_cog.imaging import images
from sharp_cog.imaging.color import srgb_to_linear
from sharp_cog.model.composer import NUM_ATTRIBUTES, compose
from sharp_cog.model.initializer import initialize
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.preview.render import coverage, render
from sharp_cog.preview.view import View
from sharp_cog.runtime.preprocess import preprocess
from sharp_cog.runtime.unproject import unproject
from tests.formats.cases import decode, written
from tests.preview.conftest import EXAMPLES
from tests.preview.scenes import CAMERA, wall

WIDTH = 768
ASIDE_M = 0.1

Pixels = NDArray[np.uint8]


def psnr(first: Pixels, second: Pixels) -> float:
    error = np.mean((first.astype(float) - second.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def from_photograph(prediction: Prediction, gaussians: Gaussians) -> Pixels:
    return render(gaussians, View.of_photograph(prediction.camera, width=WIDTH))[0]


def from_aside(prediction: Prediction, gaussians: Gaussians) -> Pixels:
    """Render the view from 0.1 m to the right of the photograph's camera."""
    pose = np.eye(4)
    pose[0, 3] = -ASIDE_M
    return render(gaussians, View.of_photograph(prediction.camera, width=WIDTH // 2).moved(pose))[0]


@pytest.fixture(scope="module")
def scene(prediction: Prediction) -> Gaussians:
    """A part of the example's Gaussians, enough to cover the image."""
    # Every fifth: 768 columns are no multiple of five, so these lie in slanting rows.
    return prediction.gaussians.map(lambda tensor: tensor[::5])


@pytest.fixture(scope="module")
def original(prediction: Prediction, scene: Gaussians) -> Pixels:
    return from_aside(prediction, scene)


def test_the_photographs_own_view_is_the_photograph(prediction: Prediction) -> None:
    image = from_photograph(prediction, prediction.gaussians)
    photograph = Image.open(EXAMPLES / "room.jpg").resize(image.shape[1::-1], Image.Resampling.BOX)
    assert psnr(image, np.asarray(photograph)) >= 28
    assert psnr(image[:, ::-1], np.asarray(photograph)) < 15, "a mirrored image would pass"


@pytest.mark.parametrize("case", ["ply", "apple_ply", "compressed_ply", "splat", "spz"])
def test_each_format_read_back_looks_the_same_from_aside(
    case: str, prediction: Prediction, scene: Gaussians, original: Pixels, tmp_path: Path
) -> None:
    path = tmp_path / f"room{formats.FORMATS[case].suffix}"
    path.write_bytes(written(case, scene, camera=prediction.camera))
    assert psnr(from_aside(prediction, formats.read(path).gaussians), original) >= 50


@pytest.mark.parametrize("case", ["sog", "glb"])
def test_formats_without_a_reader_look_the_same_when_decoded(
    case: str, prediction: Prediction, scene: Gaussians, original: Pixels
) -> None:
    decoded = decode(case, written(case, scene, camera=prediction.camera))
    gaussians = Gaussians(
        means=torch.from_numpy(decoded.means).float(),
        scales=torch.from_numpy(decoded.scales).float(),
        quaternions_wxyz=torch.from_numpy(decoded.wxyz).float(),
        colors_linear=srgb_to_linear(torch.from_numpy(decoded.srgb.clip(0, 1)).float()),
        opacities=torch.from_numpy(decoded.opacities).float(),
    )
    assert psnr(from_aside(prediction, gaussians), original) >= 50


@pytest.fixture(scope="module")
def base_splat(prediction: Prediction) -> Gaussians:
    """The example on SHARP's base Gaussians: two equal layers of 768 x 768, which are half transparent."""
    source = images.decode((EXAMPLES / "room.jpg").read_bytes())
    depth = maps.decode((EXAMPLES / "room.depth.png").read_bytes(), source.camera)
    given = preprocess(source, depth, size=1536, device=torch.device("cpu"))
    assert given.depth_m is not None
    base = initialize(given.image, given.depth_m)
    unchanged = torch.zeros(1, NUM_ATTRIBUTES, *base.inverse_z.shape[1:])
    return unproject(compose(base, unchanged), source.camera)


@pytest.mark.parametrize(("share", "decibels"), [(4, 45), (50, 29)])
def test_few_merged_gaussians_look_like_all(
    share: int, decibels: float, prediction: Prediction, base_splat: Gaussians
) -> None:
    kept = simplify(base_splat, max_gaussians=len(base_splat) // share)
    assert len(kept) == len(base_splat) // share
    whole = from_photograph(prediction, base_splat)
    assert psnr(from_photograph(prediction, kept), whole) > decibels


def test_depth_and_coverage_belong_to_the_image() -> None:
    view = View.of_photograph(CAMERA, width=96)
    image, depth_m = render(wall(2.0), view)
    covered = coverage(wall(2.0), view)
    assert image.shape == (64, 96, 3)
    assert image.dtype == np.uint8
    assert depth_m[32, 48] == pytest.approx(2.0, rel=1e-3)
    assert covered[32, 48] > 0.99
    away = view.moved(np.diag([-1.0, 1.0, -1.0, 1.0]))
    image, depth_m = render(wall(2.0), away)
    assert not image.any()
    assert not depth_m.any()
    assert not coverage(wall(2.0), away).any()


def test_rendering_without_numba_is_reported_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sharp_cog.preview.rasterize", None)
    with pytest.raises(NotInstalledError, match=r"extra 'preview' .*run \.venv/bin/pip install -e"):
        render(wall(), View.of_photograph(CAMERA, width=96))

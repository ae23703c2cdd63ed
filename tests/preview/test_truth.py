"""The truth test: a splat of the example, seen from where the photograph was taken, is the photograph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from sharp_cog import PredictOptions, Settings, SharpPipeline, formats
from sharp_cog.config.options import OutputOptions
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.simplify import prune
from sharp_cog.imaging.color import srgb_to_linear
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.preview import movie
from sharp_cog.preview.holes import REACHES, reach_without_holes
from sharp_cog.preview.path import DEFAULT_RANGE, camera_path
from sharp_cog.preview.render import coverage, render
from sharp_cog.preview.view import View
from tests import decoders
from tests.formats.test_formats import as_opencv

EXAMPLES = Path(__file__).parents[2] / "examples"
WIDTH = 768
ASIDE_M = 0.1

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def prediction() -> Prediction:
    pipeline = SharpPipeline.load(Settings(model="lift"))
    depth_bytes = (EXAMPLES / "room.depth.png").read_bytes()
    return pipeline((EXAMPLES / "room.jpg").read_bytes(), PredictOptions(), depth_bytes=depth_bytes)


def psnr(first: Pixels, second: Pixels) -> float:
    return float(10 * np.log10(255**2 / np.mean((first.astype(float) - second.astype(float)) ** 2)))


def aside(prediction: Prediction, gaussians: Gaussians) -> Pixels:
    """The view from 0.1 m to the right of the photograph's camera."""
    pose = np.eye(4)
    pose[0, 3] = -ASIDE_M
    return render(gaussians, View.of_photograph(prediction.camera, width=WIDTH).moved(pose))[0]


@pytest.fixture(scope="module")
def original(prediction: Prediction) -> Pixels:
    return aside(prediction, prediction.gaussians)


def test_the_photographs_own_view_is_the_photograph(prediction: Prediction) -> None:
    seen = movie.still(prediction.gaussians, prediction.camera, width=WIDTH)
    photograph = Image.open(EXAMPLES / "room.jpg").resize(seen.shape[1::-1], Image.Resampling.BOX)
    assert psnr(seen, np.asarray(photograph)) >= 28
    assert psnr(seen[:, ::-1], np.asarray(photograph)) < 15, "a mirrored picture would pass"


@pytest.mark.parametrize("case", ["ply", "apple_ply", "compressed_ply", "splat", "spz"])
def test_each_format_read_back_looks_the_same_from_the_side(
    case: str, prediction: Prediction, original: Pixels, tmp_path: Path
) -> None:
    path = tmp_path / f"room{formats.FORMATS[case].suffix}"
    formats.write(path, prediction.gaussians, prediction.camera, OutputOptions(output_format=case))
    assert psnr(aside(prediction, formats.read(path).gaussians), original) >= 50


@pytest.mark.slow
@pytest.mark.parametrize("case", ["sog", "glb"])
def test_what_we_do_not_read_looks_the_same_through_a_reader_of_the_tests(
    case: str, prediction: Prediction, original: Pixels, tmp_path: Path
) -> None:
    path = tmp_path / "room"
    formats.write(path, prediction.gaussians, prediction.camera, OutputOptions(output_format=case))
    decoded = as_opencv(case, decoders.DECODERS[case](path.read_bytes()))
    gaussians = Gaussians(
        means=torch.from_numpy(decoded.means).float(),
        scales=torch.from_numpy(decoded.scales).float(),
        quaternions_wxyz=torch.from_numpy(decoded.wxyz).float(),
        colors_linear=srgb_to_linear(torch.from_numpy(decoded.srgb.clip(0, 1)).float()),
        opacities=torch.from_numpy(decoded.opacities).float(),
    )
    assert psnr(aside(prediction, gaussians), original) >= 50


def test_half_of_the_gaussians_look_like_all(prediction: Prediction) -> None:
    """They contribute much alike here, so none of the picture may go before the rest."""
    whole = movie.still(prediction.gaussians, prediction.camera, width=WIDTH)
    kept = prune(prediction.gaussians, max_gaussians=len(prediction.gaussians) // 2)
    assert len(kept) == 589_824
    assert psnr(movie.still(kept, prediction.camera, width=WIDTH), whole) > 35


@pytest.mark.slow
def test_films_keep_holes_out_of_sight_by_themselves(prediction: Prediction) -> None:
    """The example has much behind its things that nobody has seen, so its camera goes less far than it would."""
    depth_m = prediction.gaussians.means[:, 2].numpy()
    near_m, focus_m = (float(np.quantile(depth_m, share)) for share in (0.05, 0.5))
    camera, photograph = prediction.camera, View.of_photograph(prediction.camera, width=384)
    reach = reach_without_holes(prediction.gaussians, camera, "swipe", near_m=near_m, focus_m=focus_m)
    assert min(REACHES) < reach < DEFAULT_RANGE
    for tried, most in ((reach, 0.02), (DEFAULT_RANGE, 1.0)):
        poses = camera_path("swipe", num_frames=5, camera=camera, near_m=near_m, focus_m=focus_m, reach=tried)
        holes = max((coverage(prediction.gaussians, photograph.moved(pose)) < 0.5).mean() for pose in poses)
        assert holes <= most
    assert holes > 0.03, "the whole range would show them"
    wall = replace(
        prediction.gaussians,
        means=prediction.gaussians.means * (3.0 / prediction.gaussians.means[:, 2:]),
        scales=torch.full_like(prediction.gaussians.scales, 0.02),
    )
    assert reach_without_holes(wall, camera, "rotate_forward", near_m=3.0, focus_m=3.0) == DEFAULT_RANGE

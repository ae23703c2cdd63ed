"""`sharp-cog evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sharp_cog import SharpPipeline
from sharp_cog.cli import main
from sharp_cog.evaluation.scenes import SCENES
from sharp_cog.evaluation.trace import render_depth, render_image
from tests.lift import small_lift


@pytest.fixture(autouse=True)
def _small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SharpPipeline, "load", lambda settings: small_lift())


def test_a_traced_scene_is_scored_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--scenes", "street", "--width", "48", "--model", "lift", "-o", str(tmp_path)]) == 0
    output = capsys.readouterr()
    first, header, *lines = output.out.splitlines()
    assert "street: " in first
    assert "lengths times 1 (as predicted)" in first
    assert header.split() == ["view", "PSNR", "SSIM", "LPIPS", "holes"]
    assert [line.split()[0] for line in lines] == ["own", "right", "left", "up", "mean"]
    assert "LPIPS is not measured" in output.err
    with Image.open(tmp_path / "street.right.png") as image:
        assert image.size == (96, 32)


def test_a_folder_of_posed_images_is_scored_like_the_scene_that_it_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene, frames = SCENES["street"](), []
    for number, x_m in enumerate((0.0, 0.2)):
        view = scene.view(96, position_m=(x_m, 0.0, 0.0))
        Image.fromarray(render_image(scene, view)).save(tmp_path / f"{number}.png")
        pose = np.eye(4)
        pose[0, 3] = x_m
        frames.append({"file_path": f"{number}.png", "transform_matrix": pose.tolist()})
    np.save(tmp_path / "depth.npy", np.minimum(render_depth(scene, scene.view(96)), 100).astype(np.float32))
    about = {"w": 96, "h": 64, "fl_x": view.focal_length_px, "depth_unit_scale_factor": 1.0}
    frames[0]["depth_file_path"] = "depth.npy"
    (tmp_path / "transforms.json").write_text(json.dumps({**about, "frames": frames}))
    command = ["evaluate", str(tmp_path), "--width", "48", "--model", "lift", "--json", "--align", "depth"]
    assert main(command) == 0
    (posed,) = json.loads(capsys.readouterr().out)
    assert (posed["case"], [score["view"] for score in posed["views"]]) == ("0.png", ["0.png", "1.png"])
    # Cells of three pixels take the nearest of their depths, so the splat is a little nearer than the map.
    assert 1.0 < posed["scale"] < 1.6
    command[-1] = "none"
    assert main(command) == 0
    (posed,) = json.loads(capsys.readouterr().out)
    assert posed["scale"] == 1.0
    assert main(["evaluate", "--scenes", "street", "--width", "48", "--model", "lift", "--json"]) == 0
    (traced,) = json.loads(capsys.readouterr().out)
    for theirs, ours in zip(posed["views"], traced["views"], strict=False):
        # The truth is traced at half the size in one case, and made half as large in the other.
        assert theirs["psnr"] == pytest.approx(ours["psnr"], abs=1.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scenes", "moon"], "'moon' is no scene: choose from room, garden, portrait, street"),
        (["--width", "8"], "width is 8: give at least 32"),
        (["--views", "0"], "views is 0: give at least 1"),
        (["--source", "a.png"], "source is given, but traced scenes have only one photograph"),
        (["folder", "--scenes", "room"], "scenes and a folder are given"),
        (["folder"], "folder cannot be read"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_traced(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *arguments]) == 2
    assert message in capsys.readouterr().err

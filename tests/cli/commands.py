"""Running commands in this process, with images that cost nothing and a predictor that returns four Gaussians."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from sharp_cog.cli import main
from sharp_cog.geometry.gaussians import NDCGaussians
from sharp_cog.model.external_depth import DepthUse
from sharp_cog.runtime.predictor import Counters, Predicted
from sharp_cog.runtime.preprocess import ModelInput

FOCAL_LENGTH_35MM_TAG = 0xA405


def run(*arguments: object) -> int:
    """Run `sharp-cog` with these arguments and return its exit code."""
    return main([str(argument) for argument in arguments])


def write_image(path: Path, *, width: int = 96, height: int = 64, equivalent_mm: int | None = None) -> Path:
    """Write a grey image, with a focal length in its EXIF block if one is given, and return its path."""
    exif = Image.Exif()
    if equivalent_mm is not None:
        exif.get_ifd(0x8769)[FOCAL_LENGTH_35MM_TAG] = equivalent_mm
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), "grey").save(path, exif=exif)
    return path


def names(folder: Path) -> list[str]:
    """Return the files below a folder, relative to it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class StubPredictor:
    """A predictor with a depth of its own, which records what it is given and fails when told to.

    Attributes:
        depths_m: Mean of the depth map of each call; None where there was no map.
        uses: Use of the depth map in each call.
        outcomes: What a call, counted from 1, raises, or returns as the position of its Gaussians.
    """

    image_size = 64
    needs_depth = False
    has_monodepth = True

    def __init__(self) -> None:
        self.counters = Counters()
        self.depths_m: list[float | None] = []
        self.uses: list[DepthUse] = []
        self.outcomes: dict[int, BaseException | float] = {}

    def predict(self, model_input: ModelInput) -> Predicted:
        depth_m = model_input.depth_m
        self.depths_m.append(None if depth_m is None else round(depth_m.mean().item(), 4))
        self.uses.append(model_input.use)
        outcome = self.outcomes.get(len(self.depths_m), 1.0)
        if isinstance(outcome, BaseException):
            raise outcome
        gaussians = NDCGaussians(
            means=torch.full((1, 4, 3), outcome),
            scales=torch.full((1, 4, 3), 0.01),
            quaternions_wxyz=torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(1, 4, 4),
            colors_linear=torch.full((1, 4, 3), 0.5),
            opacities=torch.full((1, 4), 0.5),
        )
        layers_m = torch.stack([torch.full((8, 8), 2.0), torch.full((8, 8), 3.0)])
        return Predicted(gaussians=gaussians, monodepth_m=layers_m.unsqueeze(0))

    def warm_up(self) -> None:
        return None

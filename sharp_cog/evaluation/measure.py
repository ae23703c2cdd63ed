"""Measures of a model's splats: how much novel views look like their truth."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from sharp_cog.config.options import PredictOptions
from sharp_cog.errors import OptionError
from sharp_cog.evaluation.cases import Case, Pixels
from sharp_cog.geometry.camera import Camera
from sharp_cog.geometry.gaussians import Gaussians
from sharp_cog.geometry.transform import scale_and_center
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.pipeline.request import Request
from sharp_cog.preview.metrics import psnr, ssim
from sharp_cog.preview.render import coverage, render
from sharp_cog.preview.view import View

ALIGNMENTS = ("none", "depth")
"""Ways to bring a splat to the unit of the poses: as it is, or by one factor from the photograph's known depth."""
_HOLE_BELOW = 0.5
"""Coverage below which a pixel is a hole."""
_ALIGNED_WIDTH = 256
"""Width in pixels at which a splat's depth is compared with the known one."""

Lpips = Callable[[Pixels, Pixels], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Splat:
    """A splat in the unit of the poses.

    Attributes:
        gaussians: Gaussians with OpenCV axes and the photograph's camera at the origin.
        scale: Factor that brought them to the unit of the poses.
    """

    gaussians: Gaussians
    scale: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Likeness of one view to its truth.

    Attributes:
        view: Name of the view.
        psnr: Decibels.
        ssim: At most 1.
        lpips: From 0 for the same image; None if the package is not installed.
        holes: Share of the pixels that the splat covers by less than half.
    """

    view: str
    psnr: float
    ssim: float
    lpips: float | None
    holes: float


def predict(
    pipeline: SharpPipeline, case: Case, options: PredictOptions, *, gives_depth: bool, alignment: str
) -> Splat:
    """Predict the splat of a case.

    Args:
        pipeline: Pipeline with the model.
        case: Photograph, and its depth where it is known.
        options: Options of the prediction; the focal length and the meaning of the depth come from the case.
        gives_depth: Whether the model may use the known depth; models that need a depth map always do.
        alignment: One of `ALIGNMENTS`.

    Raises:
        OptionError: The case has no depth, which the model or the alignment needs.
        SharpError: The prediction fails.
    """
    gives_depth = gives_depth or pipeline.predictor.needs_depth
    if case.depth is None and (gives_depth or alignment == "depth"):
        raise OptionError(f"{case.name} has no depth map, which the model or align needs: give its depth_file_path")
    request = Request(image=case.image, depth=case.depth if gives_depth else None, options=options)
    gaussians = pipeline(request).gaussians
    scale = 1.0 if alignment == "none" else _scale(gaussians, case)
    return Splat(gaussians=scale_and_center(gaussians, scale=scale)[0], scale=scale)


def options_of(case: Case, options: dict[str, Any]) -> PredictOptions:
    """Return the options of a prediction, with the focal length and the meaning of the depth of a case."""
    return PredictOptions(**options, focal_length_px=case.focal_length_px, depth_format="metric")


def _scale(gaussians: Gaussians, case: Case) -> float:
    """Return the median of known over predicted depth in the photograph's view."""
    assert case.depth is not None
    height, width = case.image.shape[:2]
    camera = Camera(width=width, height=height, focal_length_px=case.focal_length_px)
    view = View.of_photograph(camera, width=min(_ALIGNED_WIDTH, width))
    _, predicted = render(gaussians, view)
    # Nearest neighbours, since a mean of depths across an edge is the depth of nothing.
    known = np.asarray(Image.fromarray(case.depth).resize((view.width, view.height), Image.Resampling.NEAREST))
    is_known = np.isfinite(known) & (predicted > 0)
    if not is_known.any():
        raise OptionError(f"{case.name} has no known depth where the splat is seen: choose another alignment")
    return float(np.median(known[is_known] / predicted[is_known]))


def compare(case: Case, splat: Splat, lpips: Lpips | None) -> Iterator[tuple[Score, Pixels, Pixels]]:
    """Render the views of a case.

    Yields:
        For each view, its score, the rendered image and the truth.

    Raises:
        NotInstalledError: The extra `preview` is not installed.
    """
    for true_view in case.views:
        truth = true_view.truth()
        image, _ = render(splat.gaussians, true_view.view)
        holes = float((coverage(splat.gaussians, true_view.view) < _HOLE_BELOW).mean())
        score = Score(
            view=true_view.name,
            psnr=psnr(image, truth),
            ssim=ssim(image, truth),
            lpips=None if lpips is None else lpips(image, truth),
            holes=holes,
        )
        yield score, image, truth


def load_lpips(device: torch.device) -> Lpips | None:
    """Return LPIPS with AlexNet (Zhang et al., 2018) from the package `lpips`; None if it is not installed.

    It is no dependency, since it needs the torchvision that belongs to the installed torch. On its first use, it
    downloads AlexNet.
    """
    if importlib.util.find_spec("lpips") is None:
        return None
    import lpips

    network = lpips.LPIPS(net="alex", verbose=False).to(device).eval()

    def measure(image: Pixels, truth: Pixels) -> float:
        first, second = (
            torch.from_numpy(pixels).to(device).permute(2, 0, 1).unsqueeze(0) / 127.5 - 1 for pixels in (image, truth)
        )
        with torch.inference_mode():
            return float(network(first, second))

    return measure

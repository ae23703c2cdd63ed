"""`sharp-cog evaluate`: compare novel views of a model's splats with truth."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from sharp_cog.cli.plan import make_folder
from sharp_cog.cli.settings import settings_from
from sharp_cog.errors import OptionError
from sharp_cog.evaluation import posed
from sharp_cog.evaluation.cases import MOVES_M, Case, traced
from sharp_cog.evaluation.measure import Score, compare, load_lpips, options_of, predict
from sharp_cog.evaluation.scenes import SCENES
from sharp_cog.files.atomic import open_atomically
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.preview import movie

_MIN_WIDTH = 32


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code, as `sharp_cog.cli.main` documents it."""
    # Before the model is loaded and scenes are traced, which take minutes.
    movie.require_renderer()
    if arguments.width < _MIN_WIDTH:
        raise OptionError(f"width is {arguments.width}: give at least {_MIN_WIDTH} pixels")
    if arguments.views < 1:
        raise OptionError(f"views is {arguments.views}: give at least 1")
    cases = _cases(arguments)
    output = Path(arguments.output) if arguments.output else None
    if output is not None:
        make_folder(output)
    pipeline = SharpPipeline.load(settings_from(arguments))
    lpips = load_lpips(pipeline.device)
    if lpips is None:
        print("LPIPS is not measured: the package lpips is not installed", file=sys.stderr)
    options = {
        "max_gaussians": arguments.max_gaussians,
        "min_opacity": arguments.min_opacity,
        "depth_mode": arguments.depth_mode,
        "back_surface_factor": arguments.back_surface_factor,
    }
    given = {name: value for name, value in options.items() if value is not None}
    report: list[dict[str, Any]] = []
    progress = tqdm(total=len(cases) * _steps(arguments), unit="view", disable=not sys.stderr.isatty(), leave=False)
    for load in cases:
        case = load()
        splat = predict(
            pipeline, case, options_of(case, given), gives_depth=arguments.with_depth, alignment=arguments.align
        )
        progress.update()
        scores = list[Score]()
        for score, image, truth in compare(case, splat, lpips):
            scores.append(score)
            progress.update()
            if output is not None:
                with open_atomically(output / f"{Path(case.name).stem}.{Path(score.view).stem}.png") as file:
                    Image.fromarray(np.concatenate([truth, image], axis=1)).save(file, "PNG")
        about = {"case": case.name, "num_gaussians": len(splat.gaussians), "scale": splat.scale}
        report.append({**about, "views": [asdict(score) for score in scores]})
        if not arguments.json:
            progress.clear()
            print("\n".join(_lines(case.name, len(splat.gaussians), splat.scale, arguments.align, scores)), flush=True)
    progress.close()
    if arguments.json:
        print(json.dumps(report, indent=2))
    return 0


def _cases(arguments: argparse.Namespace) -> list[Callable[[], Case]]:
    """Return functions that load the cases, since tracing all of them at once would take long before the first line."""
    if arguments.folder is not None:
        if arguments.scenes is not None:
            raise OptionError("scenes and a folder are given: give one of them")
        folder, source = Path(arguments.folder), arguments.source
        # Read now: a folder that cannot be used should not wait for the model.
        case = posed.read(folder, source=source, max_views=arguments.views, width=arguments.width)
        return [lambda: case]
    if arguments.source is not None:
        raise OptionError("source is given, but traced scenes have only one photograph: give a folder too")
    names = list(SCENES) if arguments.scenes is None else arguments.scenes.split(",")
    for name in names:
        if name not in SCENES:
            raise OptionError(f"{name!r} is no scene: choose from {', '.join(SCENES)}")
    return [lambda name=name: traced(name, width=arguments.width) for name in names]  # type: ignore[misc]


def _steps(arguments: argparse.Namespace) -> int:
    """Return the number of steps of a case: the prediction and its views."""
    return 1 + (len(MOVES_M) if arguments.folder is None else arguments.views + 1)


def _lines(name: str, num_gaussians: int, scale: float, alignment: str, scores: list[Score]) -> Iterator[str]:
    """Yield the lines of a table."""
    how = "as predicted" if alignment == "none" else "by the median of known over predicted depth"
    yield f"{name}: {num_gaussians:,} Gaussians, lengths times {scale:.4g} ({how})"
    yield f"  {'view':24} {'PSNR':>6} {'SSIM':>6} {'LPIPS':>6} {'holes':>7}"
    novel = scores[1:]
    for score in scores:
        yield _line(score.view, score.psnr, score.ssim, score.lpips, score.holes)
    if len(novel) > 1:
        distances = [score.lpips for score in novel if score.lpips is not None]
        means = [fmean(getattr(score, name) for score in novel) for name in ("psnr", "ssim", "holes")]
        yield _line("mean without the first", means[0], means[1], fmean(distances) if distances else None, means[2])


def _line(view: str, decibels: float, similarity: float, distance: float | None, holes: float) -> str:
    shown = "-" if distance is None else f"{distance:.3f}"
    return f"  {view[-24:]:24} {decibels:6.2f} {similarity:6.3f} {shown:>6} {holes:7.2%}"

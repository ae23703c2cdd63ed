"""`sharp-cog info`: print facts about a splat or an image."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from sharp_cog import formats
from sharp_cog.cli.settings import in_flags, settings_from
from sharp_cog.cli.splats import read_splat
from sharp_cog.depth import embedded
from sharp_cog.errors import InputError
from sharp_cog.files.read import read_bytes
from sharp_cog.formats import Splat
from sharp_cog.geometry.camera import Camera
from sharp_cog.imaging import images

Report = dict[str, object]
"""Facts by their names, in the order in which they are printed."""


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code, as `sharp_cog.cli.main` documents it."""
    path = Path(arguments.file)
    content = read_bytes(path, InputError)
    splat_format = formats.detect(content, path)
    if splat_format is not None:
        splat = read_splat(path, axes=arguments.input_axes, drop_invalid=arguments.drop_invalid)
        report = {"format": splat_format, **_splat(splat), "notes": [in_flags(note) for note in splat.notes]}
    else:
        source = images.decode(content, max_pixels=settings_from(arguments).max_pixels)
        report = {"format": source.image_format, **_camera(source.camera)}
        report["focal_length_source"] = source.camera.focal_length_source
        depth = embedded.describe(content)
        if depth:
            report["embedded_depth"] = depth
    report = {"file": str(path), "bytes": len(content), **report}
    print(json.dumps(report, indent=2) if arguments.json else _as_text(report))
    return 0


def _splat(splat: Splat) -> Report:
    gaussians = splat.gaussians
    report: Report = {"num_gaussians": len(gaussians), "sh_degree": gaussians.degree}
    if splat.camera is not None:
        report |= _camera(splat.camera)
    if len(gaussians):
        report["bounds_m"] = {
            axis: [round(values.min().item(), 4), round(values.max().item(), 4)]
            for axis, values in zip("xyz", gaussians.means.unbind(-1), strict=True)
        }
        report["depth_m_quantiles"] = _quantiles(gaussians.means[:, 2])
        report["scale_m_quantiles"] = _quantiles(gaussians.scales.amax(dim=-1))
        report["opacity_quantiles"] = _quantiles(gaussians.opacities)
    return report


def _camera(camera: Camera) -> Report:
    return {
        "width": camera.width,
        "height": camera.height,
        "focal_length_px": round(camera.focal_length_px, 2),
        "focal_length_mm_equivalent": round(camera.focal_length_mm_equivalent, 2),
        "vertical_fov_degrees": round(camera.vertical_fov_degrees, 2),
    }


def _quantiles(values: torch.Tensor) -> dict[str, float]:
    """Return the minimum, the 10 %, 50 % and 90 % quantiles, and the maximum, with four digits."""
    # By sorting, since `torch.quantile` refuses more than 16 million values.
    ordered = values.sort().values
    last = len(ordered) - 1
    return {f"{share:.0%}": float(f"{ordered[round(share * last)].item():.4g}") for share in (0, 0.1, 0.5, 0.9, 1)}


def _as_text(report: Report) -> str:
    lines = []
    for name, value in report.items():
        if isinstance(value, list):  # Notes, which stderr has already.
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        elif isinstance(value, int):
            value = f"{value:,}"
        lines.append(f"{name.replace('_', ' ')}: {value}")
    return "\n".join(lines)

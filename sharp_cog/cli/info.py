"""`sharp-cog info`: what is in a splat or a picture."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharp_cog.cli.predict import FOCAL_LENGTH_SOURCES, focal_length_mm, read_bytes
from sharp_cog.cli.report import settings_from
from sharp_cog.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from sharp_cog.camera import Camera

HELP = "say what is in a splat or a picture"
DESCRIPTION = "Says what is in a splat (.ply) or a picture; the two are told apart by content."
EXAMPLES = """\
examples:
  sharp-cog info room.ply
  sharp-cog info photo.jpg --json
"""

QUANTILES = (0.05, 0.5, 0.95)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="a splat or a picture")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(args: argparse.Namespace) -> int:
    """Prints what is in the file."""
    content = read_bytes(args.file, InputError)
    is_splat = content.startswith(b"ply")
    facts = {"file": str(args.file), "bytes": len(content)}
    facts |= _splat_facts(content) if is_splat else _picture_facts(content, settings_from(args).max_pixels)
    if args.json:
        print(json.dumps(facts))
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            print(f"{name.replace('_', ' '):{width}}  {_readable(value)}")
    return 0


def _picture_facts(content: bytes, max_pixels: int) -> dict[str, Any]:
    from sharp_cog import images

    source = images.decode(content, max_pixels=max_pixels)
    return {"kind": "picture", "format": source.image_format} | _camera_facts(source.camera)


def _splat_facts(content: bytes) -> dict[str, Any]:
    from sharp_cog.formats import read_ply

    splat = read_ply.read(content)
    gaussians = splat.gaussians
    is_apples = b"\nelement intrinsic " in content[: content.index(b"end_header")]
    facts: dict[str, Any] = {
        "kind": "splat",
        "format": "apple_ply" if is_apples else "ply",
        "num_gaussians": len(gaussians),
    }
    if splat.camera is not None:
        # A splat does not keep where its focal length came from.
        facts |= {name: value for name, value in _camera_facts(splat.camera).items() if name != "focal_length_source"}
    if len(gaussians):
        facts |= {
            "bounds_min_m": gaussians.means.amin(dim=0).tolist(),
            "bounds_max_m": gaussians.means.amax(dim=0).tolist(),
            "opacity_quantiles": _quantiles(gaussians.opacities),
            "scale_m_quantiles": _quantiles(gaussians.scales),
        }
    return facts


def _camera_facts(camera: Camera) -> dict[str, Any]:
    return {
        "width": camera.width,
        "height": camera.height,
        "focal_length_px": camera.focal_length_px,
        "focal_length_mm": focal_length_mm(camera),
        "focal_length_source": camera.focal_length_source,
        "horizontal_fov_degrees": math.degrees(2 * math.atan2(camera.width / 2, camera.focal_length_px)),
        "vertical_fov_degrees": camera.vertical_fov_degrees,
    }


def _quantiles(values: Tensor) -> dict[str, float]:
    """Quantiles by numpy, because torch's refuses more than 16 million values."""
    import numpy as np

    levels = np.quantile(values.numpy(), QUANTILES)
    return {f"{quantile:.0%}": float(level) for quantile, level in zip(QUANTILES, levels, strict=True)}


def _readable(value: object) -> str:
    match value:
        case bool() | str():
            return FOCAL_LENGTH_SOURCES.get(str(value), str(value))
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.5g}"
        case list():
            return "  ".join(map(_readable, value))
        case dict():
            return ", ".join(f"{name}: {_readable(item)}" for name, item in value.items())
    return str(value)

"""`sharp-cog convert`: a splat in another format, smaller, or placed in another way."""

from __future__ import annotations

import argparse
from pathlib import Path

from sharp_cog import formats
from sharp_cog.arrange import keep_visible
from sharp_cog.atomic import sweep
from sharp_cog.cli.settings import output_options, settings_from
from sharp_cog.cli.splats import camera_of
from sharp_cog.errors import InputError
from sharp_cog.formats import NEEDING_CAMERA
from sharp_cog.options import OutputOptions


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; see `sharp_cog.cli.main` for the exit code."""
    source, target = Path(arguments.source), Path(arguments.target)
    viewer_dir = settings_from(arguments).viewer_dir
    output_format = arguments.format or formats.format_of(target)
    options = OutputOptions(output_format=output_format, **output_options(arguments))
    if target.exists() and source.exists() and target.samefile(source):
        raise InputError(f"{target} is the splat that is read: write to another file")
    formats.check(options, viewer_dir=viewer_dir)
    sweep(target.parent)
    splat = formats.read(source, axes=arguments.input_axes)
    camera = camera_of(source, splat) if output_format in NEEDING_CAMERA else splat.camera
    kept = keep_visible(splat.gaussians, max_gaussians=options.max_gaussians, min_opacity=options.min_opacity)
    formats.write(target, kept, camera, options, viewer_dir=viewer_dir)
    print(f"{target}: {len(kept):,} of {len(splat.gaussians):,} Gaussians, {target.stat().st_size / 1e6:.1f} MB")
    return 0

"""`sharp-cog convert`: write a splat in another format, simplified, or in another coordinate frame."""

from __future__ import annotations

import argparse
from pathlib import Path

from sharp_cog import formats
from sharp_cog.cli.settings import options_from, settings_from
from sharp_cog.cli.splats import camera_of, read_splat, warn
from sharp_cog.cli.targets import Existing
from sharp_cog.config.options import OutputOptions
from sharp_cog.errors import InputError
from sharp_cog.files.atomic import sweep
from sharp_cog.geometry.simplify import simplify
from sharp_cog.pipeline import output


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code, as `sharp_cog.cli.main` documents it."""
    source, target = Path(arguments.source), Path(arguments.target)
    viewer_dir = settings_from(arguments).viewer_dir
    output_format = arguments.format or formats.format_of(target)
    options = options_from(arguments, OutputOptions, output_format=output_format)
    formats.require_levels_name(target, options)
    # By the file and not by its name, which may lead there through a link.
    if target.exists() and source.exists() and target.samefile(source):
        raise InputError(f"{target} is the splat that is read: write to another file")
    existing = Existing(overwrite=arguments.overwrite, skip=arguments.skip_existing)
    if not existing.leaves([target], is_splat_format=output_format != "mp4"):
        return 0
    output.check(options, viewer_dir=viewer_dir)
    sweep(target.parent)
    splat = read_splat(source, axes=arguments.input_axes, drop_invalid=arguments.drop_invalid)
    # A missing camera matters only to the formats that need one.
    camera = camera_of(source, splat) if formats.FORMATS[output_format].needs_camera else splat.camera
    kept = simplify(splat.gaussians, max_gaussians=options.max_gaussians, min_opacity=options.min_opacity)
    warn(target, formats.losses(kept, camera, options))
    output.write(target, kept, camera, options, viewer_dir=viewer_dir)
    megabytes = formats.size_with_levels(target) / 1e6
    print(f"{target}: {len(kept):,} of {len(splat.gaussians):,} Gaussians, {megabytes:.1f} MB")
    return 0

"""Settings from the environment, overridden by flags; and options from flags."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from sharp_cog.config.settings import Settings


def settings_from(arguments: argparse.Namespace) -> Settings:
    """The process's settings; flags that a command does not have, or that are not given, change nothing.

    Raises:
        SettingError: An environment variable or a flag has a bad value.
    """
    settings = Settings.from_environment()
    if getattr(arguments, "model", None):
        settings = replace(settings, model=arguments.model)
    if getattr(arguments, "device", None):
        settings = replace(settings, device=arguments.device)
    if getattr(arguments, "precision", None):
        settings = replace(settings, precision=arguments.precision)
    if getattr(arguments, "checkpoint", None):
        settings = replace(settings, checkpoint=Path(arguments.checkpoint))
    if getattr(arguments, "cache_dir", None):
        settings = replace(settings, cache_dir=Path(arguments.cache_dir))
    return settings


def depth_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags about depth of `sharp_cog.config.options.PredictOptions`, by the option's name."""
    names = ("depth_format", "depth_mode", "back_surface_factor", "depth_fit", "depth_scale", "depth_offset")
    return {name: getattr(arguments, name) for name in (*names, "save_internal_depth")}


def output_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The flags of `sharp_cog.config.options.OutputOptions` but for the format, by the option's name."""
    return {
        name: getattr(arguments, name)
        for name in ("axes", "max_gaussians", "min_opacity", "scale", "center", "spz_version")
    }

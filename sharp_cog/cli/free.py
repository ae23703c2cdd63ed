"""`predict --free`: splats from the depth of the photograph itself, or of a network that is free for any use."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sharp_cog.config.models import ESTIMATORS, FREE_ESTIMATORS
from sharp_cog.config.settings import Settings
from sharp_cog.depth import embedded
from sharp_cog.errors import CheckpointMissingError, DepthError, ImageError, OptionError, SharpError
from sharp_cog.estimators import is_on_disk
from sharp_cog.files.read import read_bytes
from sharp_cog.imaging import images


def settings_for(settings: Settings, model: str | None) -> Settings:
    """Return the settings of a prediction that is free for any use.

    Args:
        settings: Settings of the process.
        model: Model that the command line names; None if it names none.

    Raises:
        OptionError: It names another model than lift.
    """
    if model not in (None, "lift"):
        raise OptionError(f"--free and --model {model} are both given, and {model} is not free: give one of them")
    return replace(settings, model="lift", commercial=True)


def carries_depth(image: Path) -> bool:
    """Report whether a photograph carries its depth, broken or not; an image that cannot be read carries none."""
    try:
        return _has_depth(read_bytes(image, ImageError))
    except ImageError:  # The prediction reports it, with the image's name.
        return False


def lacks_depth(image: Path, max_pixels: int) -> bool:
    """Report whether an image carries no depth; one that cannot be read needs nothing."""
    try:
        content = read_bytes(image, ImageError)
        if _has_depth(content):
            return False
        images.decode(content, max_pixels=max_pixels)
    except SharpError:  # The prediction reports it, with the image's name.
        return False
    return True


def _has_depth(content: bytes) -> bool:
    try:
        return embedded.find(content) is not None
    except DepthError:  # An estimate must not replace it in silence: the prediction reports what is broken.
        return True


def network_for(paths: Sequence[Path], *, max_pixels: int, is_interactive: bool) -> str | None:
    """Choose the network that estimates the depth of the images that carry none.

    A network that is on the disk is taken. A download is a decision of the user's: on a terminal it is asked for, and
    elsewhere the error says how to allow it.

    Args:
        paths: Images of the command.
        max_pixels: Maximum number of pixels of an image.
        is_interactive: Whether somebody can answer a question.

    Returns:
        Name of the network; None if all images carry their depth, or cannot be read.

    Raises:
        CheckpointMissingError: No free network is on the disk, and a download is not allowed.
    """
    without = next((path for path in paths if lacks_depth(path, max_pixels)), None)
    if without is None:
        return None
    for name in FREE_ESTIMATORS:
        if is_on_disk(ESTIMATORS[name]):
            return name
    facts = ESTIMATORS[FREE_ESTIMATORS[0]]
    problem = f"{without} carries no depth, and no free depth network is on this disk"
    if is_interactive:
        print(f"{problem}. Download {facts.name} ({facts.terms}) from huggingface.co? [y/N] ", end="", file=sys.stderr)
        if input().strip().lower() in ("y", "yes"):
            return facts.name
    raise CheckpointMissingError(
        f"{problem}: add --depth-from {facts.name} to download it ({facts.terms}), or --depth FILE with a depth map"
    )

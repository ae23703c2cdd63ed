"""`sharp-cog download`: the checkpoint, ahead of time."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from sharp_cog.cli.report import settings_from

HELP = "fetch and verify Apple's checkpoint ahead of time"
DESCRIPTION = """\
Downloads Apple's checkpoint (2.81 GB) and verifies it; one that is there is verified only. Prints its path.

The weights are for non-commercial research only, under the Apple Machine Learning Research Model License Agreement."""
EXAMPLES = """\
examples:
  sharp-cog download
  sharp-cog download --cache-dir /models
"""

_LOG = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    group = parser.add_argument_group("settings (each overrides the environment variable SHARP_...)")
    group.add_argument("--cache-dir", type=Path, metavar="DIR", help="where to keep it (default: torch hub's folder)")
    group.add_argument("--checkpoint-url", metavar="URL", help="where to download it from (default: Apple's CDN)")
    group.add_argument(
        "--checkpoint-sha256", metavar="HEX", help="the hash it must have; 'none' accepts any file (default: Apple's)"
    )


def run(args: argparse.Namespace) -> int:
    """Makes sure of the checkpoint and prints its path."""
    settings = settings_from(args)
    from sharp_cog import checkpoint

    path = checkpoint.locate(settings)
    if path is None:
        # What is downloaded is verified on the way.
        path = checkpoint.ensure(settings)
    else:
        _LOG.info("%s is there already: verifying it", path)
        checkpoint.verify(path, settings)
    print(path)
    return 0

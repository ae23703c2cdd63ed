"""`sharp-cog download`: the checkpoint, ahead of time."""

from __future__ import annotations

import argparse

from sharp_cog.cli.settings import settings_from
from sharp_cog.runtime import checkpoint


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; see `sharp_cog.cli.main` for the exit code."""
    settings = settings_from(arguments)
    found = checkpoint.locate(settings)
    path = found or checkpoint.ensure(settings)
    if found is not None:  # A fresh download has been verified already.
        checkpoint.verify(path, settings)
    print(f"{path}: {path.stat().st_size:,} bytes, verified")
    return 0

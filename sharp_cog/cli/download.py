"""`sharp-cog download`: fetch and verify the checkpoint before it is needed."""

from __future__ import annotations

import argparse

from sharp_cog.cli.settings import settings_from
from sharp_cog.runtime import checkpoint


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code, as `sharp_cog.cli.main` documents it."""
    settings = settings_from(arguments)
    found = checkpoint.locate(settings)
    path = found or checkpoint.ensure(settings)
    if found is not None:  # `ensure` verifies what it downloads.
        checkpoint.verify(path, settings)
    print(f"{path}: {path.stat().st_size:,} bytes, verified")
    return 0

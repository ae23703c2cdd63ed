"""What the commands share: how errors are told, exit codes, and flags that override settings."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import fields, replace
from pathlib import Path

from sharp_cog.errors import InputError, SharpError
from sharp_cog.serving.settings import MODELS, Settings

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""

_LOG = logging.getLogger(__name__)


def exit_code(error: SharpError) -> int:
    """2 where the caller's input is at fault, 1 otherwise."""
    return 2 if isinstance(error, InputError) else 1


def print_error(error: SharpError, *, subject: Path | None = None) -> None:
    """Prints `error: [subject:] message [code]` to stderr, and the traceback if debug messages are on.

    Call it where the error was caught.
    """
    _LOG.debug("traceback of the error below", exc_info=error)
    prefix = "" if subject is None else f"{subject}: "
    print(f"error: {prefix}{error} [{error.code}]", file=sys.stderr)


def add_setting_arguments(parser: argparse.ArgumentParser, *, with_model: bool) -> None:
    """Adds the flags that override the `SHARP_*` environment variables."""
    group = parser.add_argument_group("settings (each overrides the environment variable SHARP_...)")
    if with_model:
        group.add_argument(
            "--model",
            choices=MODELS,
            help="sharp (default): Apple's weights, our network; lift: no weights, needs --depth; "
            "ml-sharp: Apple's own package",
        )
    group.add_argument("--device", metavar="DEVICE", help="auto (default), cpu, cuda, cuda:N or mps")
    group.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="a checkpoint that is here already, instead of downloading"
    )


def settings_from(args: argparse.Namespace) -> Settings:
    """The environment's settings, overridden by those flags whose name is a setting's.

    Raises:
        SettingError: A variable or a flag has a bad value.
    """
    given = {field.name: getattr(args, field.name, None) for field in fields(Settings)}
    return replace(Settings.from_environment(), **{name: value for name, value in given.items() if value is not None})

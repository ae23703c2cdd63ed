"""Flags of the command line, derived from the tables of options and settings, and the values that they give."""

from __future__ import annotations

import argparse
import re
from typing import Any, TypeVar

from sharp_cog.config.dataset import FIXED_FOLDERS, DatasetSettings
from sharp_cog.config.options import OutputOptions, PredictOptions
from sharp_cog.config.output_formats import DEFAULT_FORMAT, OUTPUT_FORMATS
from sharp_cog.config.parameters import Parameter, parameters
from sharp_cog.config.services import ServiceSettings
from sharp_cog.config.settings import Settings
from sharp_cog.text import read_number

Flag = tuple[tuple[str, ...], dict[str, Any]]
"""Arguments of one call of `argparse.ArgumentParser.add_argument`, positional and named."""
Options = TypeVar("Options", bound=OutputOptions)

_OWN_FLAGS = ("output_format", "depth_from")
"""Options whose flags and values commands describe themselves."""


def as_int(text: str) -> int:
    """Convert the value of a flag to a whole number; see `read_number`."""
    read_number(text)
    return int(text)


def as_float(text: str) -> float:
    """Convert the value of a flag to a number; see `read_number`."""
    return read_number(text)


# The names of types in argparse's messages.
as_int.__name__, as_float.__name__ = "int", "float"
_TYPES = {"int": as_int, "float": as_float}
"""Types to which argparse converts an option, by its kind; text stays as it is."""
_READING_OPTIONS = ("input_axes", "drop_invalid")
"""Options of `sharp_cog.formats.read`, as its messages name them."""
_METAVARS = {"str": "TEXT", "int": "N", "float": "X", "bool": "0|1", "tuple": "A,B"}
"""Placeholders in the help of a dataset run's settings, by their kind."""


def flag(*names: str, **facts: Any) -> Flag:
    """Return a flag or a positional argument; the arguments are those of `add_argument`."""
    return names, facts


def option_flags(cls: type[OutputOptions], *names: str) -> list[Flag]:
    """Return the flags of the options of a class, or of those that are named.

    The format has a flag of its own, since its default depends on the output file, and so has the source of the depth,
    which may be a network on the command line.
    """
    return [
        _option_flag(about)
        for about in parameters(cls)
        if about.name not in _OWN_FLAGS and (not names or about.name in names)
    ]


def format_flag() -> Flag:
    """Return the flag of the output format."""
    about = next(about for about in parameters(OutputOptions) if about.name == "output_format")
    default = f"by the suffix of the output file, else {DEFAULT_FORMAT}"
    return flag("--format", choices=tuple(OUTPUT_FORMATS), help=f"{about.help} (default: {default})")


def setting_flags(*names: str) -> list[Flag]:
    """Return the flags of these settings; a flag that is not given leaves the variable's value."""
    named = {about.name: about for table in (Settings, ServiceSettings) for about in parameters(table)}
    return [
        flag(
            # No default, so that a flag that is not given is None and leaves the variable its turn.
            _flag_of(name),
            choices=tuple(named[name].choices) or None,
            metavar=named[name].metavar or None,
            **_switch(named[name]),
            help=_help(named[name]),
        )
        for name in names
    ]


def dataset_flags() -> list[Flag]:
    """Return a flag for each setting of a dataset run.

    Secrets have none, since other users of the machine see command lines. The flags of fixed folders are hidden; they
    are still understood, so that `DatasetSettings.build` can explain that the folder is fixed.
    """
    flags = [
        flag(
            _flag_of(about.name),
            metavar="FOLDER" if about.is_path else _METAVARS[about.kind],
            **_switch(about),
            help=_help(about),
        )
        for about in parameters(DatasetSettings)
        if not about.is_secret
    ]
    return [*flags, *(flag(_flag_of(name), help=argparse.SUPPRESS) for name in FIXED_FOLDERS)]


def settings_from(arguments: argparse.Namespace) -> Settings:
    """Return the settings of the pipeline, from the flags that are given and from the environment.

    Raises:
        SettingError: An environment variable or a flag has a bad value.
    """
    return Settings.from_environment(flags=arguments)


def options_from(arguments: argparse.Namespace, cls: type[Options], **given: Any) -> Options:
    """Return the options that the flags give.

    Args:
        arguments: Parsed flags; an option that the command has no flag for keeps its default.
        cls: Class of the options.
        given: Values that are not taken from a flag, such as `output_format`.

    Raises:
        OptionError: A value is out of its range, or two options exclude each other.
    """
    names = [about.name for about in parameters(cls) if about.name not in (*given, *_OWN_FLAGS)]
    names = [name for name in names if hasattr(arguments, name)]
    return cls(**{name: getattr(arguments, name) for name in names}, **given)


def in_flags(text: str) -> str:
    """Return a message that names options with the flags in place of their names."""
    flags = {about.name: _flag_of(about.name) for about in parameters(PredictOptions) if "_" in about.name}
    flags["output_format"] = "--format"
    flags |= {name: _flag_of(name) for name in _READING_OPTIONS}
    # A file may have the name of an option, and keeps it.
    return re.sub(rf"(?<![\w./-])({'|'.join(flags)})(?![\w./-])", lambda found: flags[found.group()], text)


def _switch(about: Parameter) -> dict[str, Any]:
    """Return the facts of a switch, which needs no value: `--hf-upload` is `--hf-upload 1`."""
    return {"nargs": "?", "const": "1"} if about.kind == "bool" else {}


def _flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _option_flag(about: Parameter) -> Flag:
    if about.kind == "bool":
        return flag(_flag_of(about.name), action="store_true", help=about.help)
    return flag(
        _flag_of(about.name),
        type=_TYPES.get(about.kind),
        choices=tuple(about.choices) or None,
        default=about.default,
        metavar=about.metavar or None,
        help=_help(about),
    )


def _help(about: Parameter) -> str:
    meanings = f". {about.meanings}" if about.meanings else ""
    notes = "; ".join(
        note for note in (about.default_text and f"default: {about.default_text}", about.variable) if note
    )
    return f"{about.help}{meanings} ({notes})" if notes else f"{about.help}{meanings}"

"""Parameters: all facts about one option or one setting, in one place.

Options and settings are fields of frozen dataclasses, and each field carries a `Parameter` in its metadata. Flags,
forms, schemas, the reader of the environment and the tables in `docs/` are derived from it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from sharp_cog.errors import SharpError
from sharp_cog.text import quoted, read_number, redact

MAX_NUMBER = 1e9
"""Largest number of seconds, megabytes or items; larger ones overflow in the libraries that receive them."""
MAX_NAME_BYTES = 255
"""Maximum length of a file's or folder's name on all common file systems."""
POSITIVE = (5e-324, MAX_NUMBER)
"""Limits of a number that must be greater than zero; the lower one is the smallest positive float64."""
FRONTENDS = ("command line", "Python", "HTTP", "RunPod", "Modal", "Cog")
"""Frontends that offer options, as the documentation calls them."""
BOOLEANS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}
"""Spellings of true and false, in lower case."""

_KEY = "parameter"


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """Description of one option or setting.

    Attributes:
        help: Meaning, as a phrase without a full stop.
        choices: Values to choose from, each with its meaning, which may be empty. A list is checked item by item.
        limits: Least and largest number.
        unit: Unit or meaning of the number, for the message that refuses one.
        metavar: Placeholder for the value in a command line's help.
        accepts: Check of a text that is not empty; a false result refuses it.
        remedy: Advice for a text that `accepts` refuses.
        is_path: Whether a text names a file or folder.
        is_secret: Whether the value is kept out of logs, and out of command lines, which other users can see.
        variable: Environment variable of a setting.
        read: Converter from the text of the variable, where the type does not decide.
        aliases: Other names that requests may use.
        frontends: Frontends that offer an option.
        name: Name of the field.
        kind: Type of the field: `str`, `int`, `float`, `bool`, `tuple` or `Path`.
        default: Default of the field.
    """

    help: str
    choices: Mapping[Any, str] = field(default_factory=dict)
    limits: tuple[float, float] | None = None
    unit: str = ""
    metavar: str = ""
    accepts: Callable[[str], object] | None = None
    remedy: str = ""
    is_path: bool = False
    is_secret: bool = False
    variable: str = ""
    read: Callable[[str], Any] | None = None
    aliases: tuple[str, ...] = ()
    frontends: tuple[str, ...] = FRONTENDS
    name: str = ""
    kind: str = ""
    default: Any = None

    @property
    def meanings(self) -> str:
        """Meanings of the choices, such as `3: ...; 4: ...`; empty where there are none."""
        return "; ".join(f"{choice}: {meaning}" for choice, meaning in self.choices.items() if meaning)

    @property
    def default_text(self) -> str:
        """The default as users write it; empty where there is none."""
        if self.default is None:
            return ""
        if isinstance(self.default, tuple):
            return ",".join(self.default)
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)


def sentence(phrase: str) -> str:
    """Return a phrase as a sentence, with a capital letter and a full stop."""
    return f"{phrase[0].upper()}{phrase[1:]}."


def parameter(default: Any, help_: str, *, choices: Any = (), is_secret: bool = False, **facts: Any) -> Any:
    """Declare a dataclass field with a `Parameter`.

    Args:
        default: Default of the field.
        help_: Meaning, as a phrase without a full stop.
        choices: Values to choose from; a mapping adds their meanings.
        is_secret: Whether the value must not appear in a repr, a log or a command line.
        facts: Other attributes of `Parameter`.
    """
    meanings = choices if isinstance(choices, Mapping) else dict.fromkeys(choices, "")
    # Name, kind and default follow in `parameters`, once the class knows its fields.
    facts_of_field = Parameter(help=help_, choices=meanings, is_secret=is_secret, **facts)
    return field(default=default, repr=not is_secret, metadata={_KEY: facts_of_field})


def parameters(cls: type) -> tuple[Parameter, ...]:
    """Return the parameters of a dataclass of options or settings, in the order of its fields."""
    return _parameters(cls)


@cache  # Every prediction checks its options.
def _parameters(cls: type) -> tuple[Parameter, ...]:
    return tuple(
        replace(
            each.metadata[_KEY],
            name=each.name,
            # Annotations are texts here: `int | None` becomes `int`, and `tuple[str, ...]` becomes `tuple`.
            kind=str(each.type).removesuffix(" | None").partition("[")[0],
            default=each.default,
        )
        for each in fields(cls)
    )


def parse(about: Parameter, label: str, value: object, error_type: type[SharpError]) -> Any:
    """Convert a value, which may be text, to the parameter's type.

    Args:
        about: The parameter.
        label: Name by which an error calls it.
        value: Text, or for an option also a number or a bool.
        error_type: Class of the error.

    Raises:
        SharpError: The value is not of the type; the error is an `error_type`.
    """
    try:
        if about.read is not None:
            return about.read(str(value))
        if about.kind in _PARSERS:
            return _PARSERS[about.kind](value)
    except ValueError as error:  # The converters phrase their errors as remedies.
        raise error_type(f"{label} is {quoted(value)}: {error}") from None
    return value


def check(about: Parameter, label: str, value: Any, error_type: type[SharpError]) -> None:
    """Check a value against the choices, limits and rules of its parameter.

    Args:
        about: The parameter.
        label: Name by which an error calls it.
        value: Value of the parameter's type.
        error_type: Class of the error.

    Raises:
        SharpError: The value is refused; the message names it and the remedy. The error is an `error_type`.
    """
    choices = tuple(about.choices)  # Not the mapping, which cannot look up a list.
    # First the choices, then the limits, the rule of the setting, and the path.
    for item in value if about.kind == "tuple" else (value,):
        if choices and item not in choices:
            verb = "has" if about.kind == "tuple" else "is"
            raise error_type(f"{label} {verb} {quoted(item)}: choose one of {', '.join(map(str, choices))}")
    if about.limits is not None and value is not None:
        low, high = about.limits
        if not low <= value <= high:  # True for NaN too.
            raise error_type(f"{label} is {quoted(value)}: {_wanted(about, low, high)}")
    # An empty text is valid where it is the default, and means that the setting is not given. So does None.
    is_given = value is not None and bool(value or about.default)
    if about.accepts is not None and is_given and not about.accepts(value):
        raise error_type(f"{label} is {quoted(redact(value) if isinstance(value, str) else value)}: {about.remedy}")
    if about.is_path and value:
        try:
            as_path(value)
        except ValueError as error:
            raise error_type(f"{label} is {quoted(value)}: {error}") from None


def _wanted(about: Parameter, low: float, high: float) -> str:
    if about.limits == POSITIVE:
        return f"give a positive number of at most {high:.15g}"
    return f"give a number from {low:.15g} to {high:.15g} {about.unit}".rstrip()


def as_path(value: object) -> Path | None:
    """Return the path that a text names, with `~` expanded; None for an empty text.

    Raises:
        ValueError: No user has the name behind `~`, or no file system allows the name.
    """
    text = str(value)
    if not text:
        return None
    try:
        # With a NUL in the name of a user, `expanduser` would raise an error of its own.
        path = Path("" if "\0" in text else text).expanduser()
    except RuntimeError:
        raise ValueError("that user has no home folder here, write the path out") from None
    if "\0" in text or any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in path.parts):
        raise ValueError("no file can have that name, correct it")
    return path


def _as_number(value: object, remedy: str = "give a number") -> float:
    # In Python, True is the number 1; in a request it is a mistake.
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(remedy)
    try:
        return read_number(value) if isinstance(value, str) else float(value)
    except (ValueError, OverflowError):
        raise ValueError(remedy) from None


def _as_whole_number(value: object) -> int:
    remedy = "give a whole number"
    # By a float, since forms and JSON also write whole numbers as 4.0; infinity and NaN are no whole numbers.
    number = _as_number(value, remedy)
    if not number.is_integer():
        raise ValueError(remedy)
    return int(number)


def _as_bool(value: object) -> bool:
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    found = BOOLEANS.get(value.strip().lower()) if isinstance(value, str) else None
    if found is None:
        raise ValueError("give true or false")
    return found


def _as_tuple(value: object) -> tuple[str, ...]:
    return tuple(part.strip() for part in str(value).split(",") if part.strip())


_PARSERS: dict[str, Callable[[object], Any]] = {
    "bool": _as_bool,
    "float": _as_number,
    "int": _as_whole_number,
    "tuple": _as_tuple,
    "Path": as_path,
}
"""Converters by the kind of the parameter; any other kind keeps its value."""

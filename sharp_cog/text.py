"""Foreign text: read without trust, shortened for messages, and stripped of secrets for logs."""

from __future__ import annotations

import json
import re
import reprlib
import traceback
from typing import Any

MAX_CHARS = 80
"""Of a value in a message."""
_MAX_REASON = 200
"""Characters of what an exception says."""
_MAX_TOLD = 10_000
"""Characters of a text that are looked at for secrets."""
_MAX_BITS = 256
"""Of integers that are written out: Python takes quadratic time for it, and refuses thousands of digits."""
_MAX_DIGITS = 18
"""Of counts that headers tell: more than any file has bytes."""


class _Quotes(reprlib.Repr):
    """As `repr`, but neither long nor deep: a value may have megabytes, or ten thousand lists in each other."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, MAX_CHARS, MAX_CHARS
        self.maxtuple = 8  # Shapes of tensors, too.

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= _MAX_BITS else f"an integer of {x.bit_length()} bits"

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x) if len(x) <= MAX_CHARS // 4 else f"{len(x)} bytes"


_QUOTES = _Quotes()


def quoted(value: object) -> str:
    """A value as `repr` writes it, with its middle left out where it is long."""
    text = _QUOTES.repr(value)
    return text if len(text) <= 2 * MAX_CHARS else f"{text[:MAX_CHARS]}...{text[-MAX_CHARS // 2 :]}"


def plain(text: object, limit: int = MAX_CHARS) -> str:
    """Text without quotes or secrets, in one line, with spaces for what cannot be shown, and cut where it is long."""
    told = redact(str(text)[:_MAX_TOLD])
    line = " ".join("".join(char if char.isprintable() else " " for char in told).split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def reason_of(error: BaseException) -> str:
    """What a foreign exception says, fit for a message; its name where it says nothing."""
    return plain(error, _MAX_REASON) or type(error).__name__


def first_line(error: object) -> str:
    """The first line of what an exception says, without secrets and cut short; empty where it says nothing."""
    return redact((str(error).strip().splitlines() or [""])[0])[:_MAX_REASON]


def read_json(content: bytes | str) -> Any:
    """What JSON says.

    Raises:
        ValueError: It is none, or nested deeper than can be read.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_count(text: str) -> int | None:
    """A number of bytes, items or seconds that a header tells; None for anything else, such as a superscript."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else None


_SECRETS = (
    # Anything before the last @ of an address's host: user, password, token.
    (re.compile(r"(?<=//)[^\s/?#'\"<>]*@"), ""),
    # The query of an address, or of a path alone, where signatures and keys stand.
    (re.compile(r"\?[^\s?'\"<>]*=[^\s'\"<>]*"), "?..."),
    (re.compile(r"\b(Bearer|Client-ID|Authorization\W+Basic)(\s+)[\w.~+/=-]{6,}", re.IGNORECASE), r"\1\2..."),
    # Tokens that are known by how they begin: Hugging Face, RunPod, Modal, AWS.
    (re.compile(r"\b(hf_|rpa_|ak-|as-|AKIA)[A-Za-z0-9]{10,}"), r"\1..."),
)


def redact(text: str) -> str:
    """The text without passwords and queries of addresses, authorization headers and well-known tokens.

    What is told of a foreign error goes through here: libraries put whole addresses into theirs, and an address may be
    signed.
    """
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def trace(error: BaseException) -> str:
    """The traceback of an error with all that led to it, as `traceback` writes it, but redacted."""
    return redact("".join(traceback.format_exception(error))).rstrip("\n")

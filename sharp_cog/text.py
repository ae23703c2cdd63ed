"""Text from other programs: parsed without trust, shortened for messages, and redacted for logs."""

from __future__ import annotations

import json
import re
import reprlib
import traceback
from typing import Any

MAX_CHARS = 80
"""Maximum length of a value in a message."""
_MAX_REASON = 200
"""Maximum length of an exception's text in a message."""
_MAX_SEARCHED = 10_000
"""Maximum length of a text that is searched for secrets; the rest is dropped first."""
_MAX_BITS = 256
"""Maximum size of an integer that is written out: Python takes quadratic time, and refuses thousands of digits."""
_MAX_DIGITS = 18
"""Maximum number of digits of a count in a header: more than any file has bytes."""


class _Quotes(reprlib.Repr):
    """A `repr` of bounded length and depth, for values of megabytes and for lists nested ten thousand deep."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, MAX_CHARS, MAX_CHARS
        self.maxtuple = 8  # The shape of a tensor is shown whole.

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if x.bit_length() <= _MAX_BITS else f"an integer of {x.bit_length()} bits"

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x) if len(x) <= MAX_CHARS // 4 else f"{len(x)} bytes"


_QUOTES = _Quotes()


def quoted(value: object) -> str:
    """Return the `repr` of a value; the middle of a long one is replaced with an ellipsis."""
    # The limits of `_Quotes` hold for each part of a value, so the whole may still be long.
    text = _QUOTES.repr(value)
    return text if len(text) <= 2 * MAX_CHARS else f"{text[:MAX_CHARS]}...{text[-MAX_CHARS // 2 :]}"


def plain(text: object, limit: int = MAX_CHARS) -> str:
    """Return a text in one line, without quotes.

    Args:
        text: Text; any other object is converted with `str`.
        limit: Maximum length of the result.

    Returns:
        The text without secrets, with spaces for characters that cannot be printed, cut to the limit.
    """
    # Redacted before it is cut to the limit, because half of a token would not be recognised.
    searched = redact(str(text)[:_MAX_SEARCHED])
    line = " ".join("".join(char if char.isprintable() else " " for char in searched).split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def reason_of(error: BaseException) -> str:
    """Return the text of a foreign exception, fit for a message; its class if it has no text."""
    return plain(error, _MAX_REASON) or type(error).__name__


def first_line(error: object) -> str:
    """Return the first line of an exception's text, redacted and cut short; empty if it has no text."""
    return redact((str(error).strip().splitlines() or [""])[0])[:_MAX_REASON]


def read_json(content: bytes | str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: The content is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(content)
    # Python's parser descends into nested lists, and thousands of brackets exhaust its stack.
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_count(text: str) -> int | None:
    """Parse a number of bytes, items or seconds in a header; None for any other text."""
    # `str.isdigit` alone would also accept superscripts, which `int` refuses.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else None


_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|[+-]?inf(?:inity)?|nan", re.IGNORECASE)


def read_number(text: str) -> float:
    """Parse a number as people and programs write it, with spaces around it at most.

    Raises:
        ValueError: The text is no number. Python's `float` would also take `1_000`, and the digits of other scripts.
    """
    stripped = text.strip(" \t\r\n")
    if not _NUMBER.fullmatch(stripped):
        raise ValueError(f"{quoted(text)} is no number")
    return float(stripped)


_SECRETS = (
    # User, password or token: all that precedes the last @ in the host of an address.
    (re.compile(r"(?<=//)[^\s/?#'\"<>]*@"), ""),
    # The query of an address or of a bare path, where signatures and keys are.
    (re.compile(r"\?[^\s?'\"<>]*=[^\s'\"<>]*"), "?..."),
    (re.compile(r"\b(Bearer|Client-ID|Authorization\W+Basic)(\s+)[\w.~+/=-]{6,}", re.IGNORECASE), r"\1\2..."),
    # Tokens with a known prefix: Hugging Face, RunPod, Modal, AWS.
    (re.compile(r"\b(hf_|rpa_|ak-|as-|AKIA)[A-Za-z0-9]{10,}"), r"\1..."),
)


def redact(text: str) -> str:
    """Remove passwords and queries of addresses, authorization headers and well-known tokens from a text.

    Every text of a foreign error must pass through here before it is shown or logged: libraries put whole addresses
    into their errors, and an address may be signed.
    """
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def trace(error: BaseException) -> str:
    """Return the redacted traceback of an error, with its causes."""
    return redact("".join(traceback.format_exception(error))).rstrip("\n")

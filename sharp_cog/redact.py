"""Text without the secrets that it may hold, for logs and messages."""

from __future__ import annotations

import re
import traceback

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

"""What callers send, the same behind every door: pictures as base64 or by a URL, options by name."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection, Mapping
from typing import Any

from sharp_cog.config.options import PredictOptions
from sharp_cog.config.settings import ServiceSettings
from sharp_cog.errors import DepthError, ImageError, InputError, OptionError
from sharp_cog.serving.fetch import fetch

ALIASES = {"f_px": "focal_length_px", "format": "output_format"}
"""Names that callers of other services of SHARP know, and ours."""

_ADDRESS = re.compile(r"\s*(https?|ftp)://", re.IGNORECASE)
_DATA_URI = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)


def options_from(values: Mapping[str, Any]) -> PredictOptions:
    """Builds options from a transport's mapping; None and empty strings count as not given.

    Raises:
        OptionError: As `PredictOptions.from_mapping`, or an option is given under two names.
    """
    named: dict[str, Any] = {}
    for name, value in values.items():
        ours = ALIASES.get(name, name)
        if value is None or value == "":
            continue
        if ours in named:
            both = " and ".join(other for other in values if ALIASES.get(other, other) == ours)
            raise OptionError(f"{both} are both given: they are the same, give one")
        named[ours] = value
    return PredictOptions.from_mapping(named)


def decode_base64(name: str, text: object) -> bytes:
    """Bytes of base64 text, with or without a data URI's prefix; white space does not count.

    Raises:
        InputError: It is no text, or not base64.
    """
    if not isinstance(text, str):
        raise InputError(f"{name} is of type {type(text).__name__}: give base64 text")
    if _ADDRESS.match(text):
        right_name = "depth_url" if name.startswith("depth") else "image_url"
        raise InputError(f"{name} is a web address, not base64: give it as {right_name}")
    prefix = _DATA_URI.match(text)
    if prefix and ";base64," not in prefix.group().lower():
        raise InputError(f"{name} is a data URI that is not base64: give base64")
    try:
        content = base64.b64decode("".join(text[prefix.end() if prefix else 0 :].split()), validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"{name} begins with {text[:20]!r}, which is not base64: encode the file's bytes") from None
    if not content:
        raise InputError(f"{name} is empty: give the file's bytes as base64")
    return content


def check_sources(given: Collection[str], *, image_name: str) -> None:
    """Checks that there is one picture, and one depth map at most.

    Args:
        given: Names of what the request holds: `image_url`, `depth`, `depth_url` and `image_name` count.
        image_name: What the door calls the picture itself.

    Raises:
        ImageError: There is no picture, or there are two.
        DepthError: There are two depth maps.
    """
    if image_name in given and "image_url" in given:
        raise ImageError(f"{image_name} and image_url are both given: give one")
    if image_name not in given and "image_url" not in given:
        raise ImageError(f"there is no picture: give {image_name} or image_url")
    if "depth" in given and "depth_url" in given:
        raise DepthError("depth and depth_url are both given: give one")


def fetch_named(name: str, url: object, settings: ServiceSettings) -> bytes:
    """What is behind a URL in a request.

    Raises:
        InputError: The value is no text, or cannot be fetched.
    """
    if not isinstance(url, str):
        raise InputError(f"{name} is of type {type(url).__name__}: give an http or https address")
    return fetch(url.strip(), settings)

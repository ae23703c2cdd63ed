"""Inputs of a request, alike for all frontends: images as base64 or by URL, and options by name."""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Collection, Mapping
from typing import IO, Any

from sharp_cog.config.options import PredictOptions
from sharp_cog.config.parameters import parameters
from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import DepthError, ImageError, InputError, OptionError
from sharp_cog.serving.fetch import fetch_into
from sharp_cog.text import plain, quoted

IMAGE_NAMES = ("image", "image_base64", "image_b64")
"""Names of a field with the image as base64; they mean the same."""
ALIASES = {alias: about.name for about in parameters(PredictOptions) for alias in about.aliases}
"""Names of options at other services of SHARP, each with our name."""

OPTION_NAMES = frozenset(name for about in parameters(PredictOptions) for name in (about.name, *about.aliases))
"""Names under which requests may give options."""

_ADDRESS = re.compile(r"\s*(https?|ftp)://", re.IGNORECASE)
_DATA_URI = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)


def option_name(name: str) -> str:
    """Return the name of the option that a request calls by this name, which may be an alias."""
    return ALIASES.get(name, name)


def options_from(values: Mapping[str, Any]) -> PredictOptions:
    """Build options from the values of a request; None and empty text are not given.

    Args:
        values: Values by name or alias.

    Raises:
        OptionError: A name is unknown, a value is bad, or an option is given under two names.
    """
    named: dict[str, Any] = {}
    for name, value in values.items():
        ours = option_name(name)
        if value is None or value == "":
            continue
        if ours in named:
            both = " and ".join(other for other in values if option_name(other) == ours)
            raise OptionError(f"{both} are both given, and are the same option: give one")
        named[ours] = value
    options = PredictOptions.from_mapping(named)
    if options.lod is not None:
        raise OptionError("lod is given, but the answer is one file: leave it out, and convert the file with sharp-cog")
    return options


def decode_base64(name: str, text: object) -> bytes:
    """Decode base64 text, with or without the prefix of a data URI; white space is ignored.

    Args:
        name: Name of the field, for errors.
        text: Value of the field.

    Raises:
        InputError: The value is not text, or not base64.
    """
    if not isinstance(text, str):
        raise InputError(f"{name} is of type {type(text).__name__}: give base64 text")
    # An address in this field is a common mistake, and base64 would refuse it for its colon.
    if _ADDRESS.match(text):
        right_name = "depth_url" if name.startswith("depth") else "image_url"
        raise InputError(f"{name} is a web address, not base64: give it as {right_name}")
    prefix = _DATA_URI.match(text)
    if prefix and ";base64," not in prefix.group().lower():
        raise InputError(f"{name} is a data URI that is not base64: give base64")
    try:
        # Without `validate`, Python skips characters that are not base64. White space goes first, as it is legal.
        content = base64.b64decode("".join(text[prefix.end() if prefix else 0 :].split()), validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"{name} begins with {text[:20]!r}, which is not base64: encode the file's bytes") from None
    if not content:
        raise InputError(f"{name} is empty: give the file's bytes as base64")
    return content


def is_data_uri(value: object) -> bool:
    """Report whether a value is a data URI, which programs send in place of an address."""
    return isinstance(value, str) and value.lstrip()[:5].lower() == "data:"


def check_sources(given: Collection[str], *, image_name: str, others: Collection[str] = ()) -> None:
    """Check that a request has one image, and at most one depth map.

    Args:
        given: Names of the fields with images and depth maps in the request.
        image_name: Name of the frontend's field for an image that is sent along; one behind a URL is `image_url`.
        others: Names of the other fields, one of which may be the image under a wrong name.

    Raises:
        ImageError: There is no image, or there are two.
        DepthError: There are two depth maps.
    """
    if image_name in given and "image_url" in given:
        raise ImageError(f"{image_name} and image_url are both given: give one")
    if image_name not in given and "image_url" not in given:
        unknown = [name for name in others if name not in OPTION_NAMES]
        found = f"unknown field {plain(unknown[0]) or quoted(unknown[0])}" if unknown else "the request has no image"
        raise ImageError(f"{found}: give {image_name} or image_url")
    if "depth" in given and "depth_url" in given:
        raise DepthError("depth and depth_url are both given: give one")


def fetch_named(name: str, url: object, settings: ServiceSettings) -> bytes:
    """Fetch the file behind a URL in a request.

    Args:
        name: Name of the field, for errors.
        url: Value of the field.
        settings: Limits of the fetch.

    Raises:
        InputError: The value is not text, or the file cannot be fetched.
    """
    content = io.BytesIO()
    fetch_named_into(name, url, settings, content)
    return content.getvalue()


def fetch_named_into(name: str, url: object, settings: ServiceSettings, file: IO[bytes]) -> None:
    """Fetch the file behind a URL in a request, and write it to another one; see `fetch_named`."""
    if not isinstance(url, str):
        raise InputError(f"{name} is of type {type(url).__name__}: give an http or https address")
    fetch_into(url.strip(), settings, file)

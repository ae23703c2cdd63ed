"""Settings of a process, and the reader of its environment.

Options (`sharp_cog.config.options`) belong to one prediction; settings belong to the process that makes it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sharp_cog.config.models import SPLAT_MODELS
from sharp_cog.config.parameters import POSITIVE, check, parameter, parameters, parse
from sharp_cog.errors import SettingError
from sharp_cog.text import quoted

MODELS = {facts.name: facts.purpose for facts in SPLAT_MODELS.values()}
PRECISIONS = ("auto", "float32", "float16", "bfloat16")
CHECKPOINT_URL = "https://ml-site.cdn-apple.com/models/sharp/sharp_2572gikvuh.pt"
CHECKPOINT_SHA256 = "94211a75198c47f61fca7d739ba08a215418d8d398d48fddf023baccc24f073d"


def setting(variable: str, default: Any, help_: str, **facts: Any) -> Any:
    """Declare a dataclass field that is read from an environment variable; see `parameters.parameter`."""
    return parameter(default, help_, variable=variable, **facts)


def given(
    cls: type, environment: Mapping[str, str] | None, flags: object = None, *, names: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the settings that flags or the environment give, by field; a flag takes precedence.

    Args:
        cls: Dataclass of settings.
        environment: Variables, of which empty ones count as not set; None is the environment of the process.
        flags: Parsed flags, with an attribute for each field that has a flag; None values are not given.
        names: Fields to read; none means all.

    Raises:
        SettingError: A value is not of the setting's type.
    """
    variables = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    for about in parameters(cls):
        if names and about.name not in names:
            continue
        # A flag wins even if it is empty, which gives a setting its empty value.
        flag = getattr(flags, about.name, None)
        text = variables.get(about.variable, "").strip() if flag is None else str(flag).strip()
        if text or flag is not None:
            values[about.name] = parse(about, about.variable, text, SettingError)
    return values


def check_settings(settings: Any) -> None:
    """Check all fields of a dataclass of settings.

    Raises:
        SettingError: A value is bad; the message names the variable.
    """
    for about in parameters(type(settings)):
        check(about, about.variable, getattr(settings, about.name), SettingError)


def is_address(url: str) -> bool:
    """Report whether a text is an http or https address that the libraries accept."""
    try:
        parts = urlsplit(url)
        is_complete = parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # For a bracket that is not closed, or a port that is not a number below 65536.
        return False
    return is_complete and url.isprintable() and " " not in url


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Settings of the pipeline.

    Raises:
        SettingError: A value is bad; the message names the variable.
    """

    model: str = setting("SHARP_MODEL", "sharp", "model to predict with", choices=MODELS)
    checkpoint: Path | None = setting(
        "SHARP_CHECKPOINT",
        None,
        "checkpoint file; by default it is found in the cache, else downloaded",
        metavar="FILE",
    )
    cache_dir: Path | None = setting(
        "SHARP_CACHE_DIR", None, "folder of downloaded checkpoints; by default torch hub's folder", metavar="FOLDER"
    )
    checkpoint_url: str = setting(
        "SHARP_CHECKPOINT_URL",
        CHECKPOINT_URL,
        "address to download a missing checkpoint from",
        is_secret=True,
        accepts=is_address,
        remedy="give an http or https address",
    )
    checkpoint_sha256: str | None = setting(
        "SHARP_CHECKPOINT_SHA256",
        CHECKPOINT_SHA256,
        "SHA-256 that a downloaded checkpoint must have; `none` accepts any file",
        read=lambda text: None if text.lower() == "none" else text.lower(),
        accepts=re.compile("[0-9a-f]{64}").fullmatch,
        remedy="give 64 hexadecimal digits, or 'none' to accept any file",
    )
    commercial: bool = setting("SHARP_COMMERCIAL", False, "refuse networks whose licence does not allow commercial use")
    device: str = setting(
        "SHARP_DEVICE", "auto", "device to compute on, such as auto, cpu, cuda, cuda:1 or mps", metavar="NAME"
    )
    max_megapixels: float = setting(
        "SHARP_MAX_MEGAPIXELS", 200.0, "largest image in megapixels; larger ones are refused", limits=POSITIVE
    )
    viewer_dir: Path | None = setting(
        "SHARP_VIEWER_DIR",
        None,
        "folder `public` of the npm package @playcanvas/supersplat-viewer, for the format html; by default the "
        "folder that scripts/viewer fills",
    )
    precision: str = setting(
        "SHARP_PRECISION",
        "auto",
        "precision of the network; auto takes half precision where the device is made for it",
        choices=PRECISIONS,
    )
    cache_weights: bool = setting(
        "SHARP_CACHE_WEIGHTS",
        False,
        "no longer does anything: a copy of the weights in half precision did not load faster",
    )
    keep_encoding: bool = setting(
        "SHARP_KEEP_ENCODING",
        True,
        "keep the encoders' output for the last image, 170 MB in half precision: another focal length or depth map for "
        "the same image then takes a tenth of the time",
    )
    cuda_graphs: bool = setting("SHARP_CUDA_GRAPHS", True, "run the network as CUDA graphs on CUDA devices")

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def max_pixels(self) -> int:
        """`max_megapixels` in pixels."""
        return int(self.max_megapixels * 1e6)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None, flags: object = None) -> Settings:
        """Read the `SHARP_*` variables; empty ones count as not set.

        Args:
            environment: Variables; None is the environment of the process.
            flags: Parsed flags, which take precedence.

        Raises:
            SettingError: A variable has a bad value.
        """
        return cls(**given(cls, environment, flags))


def process_environment(more: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """Return the environment of the process.

    Args:
        more: Variables of a file `.env`. Each one that the environment does not have is set for this process and its
            children.

    Raises:
        SettingError: A name or value cannot be set.
    """
    for name, value in (more or {}).items():
        try:
            # In the environment, since libraries such as the hub's client read their variables themselves.
            os.environ.setdefault(name, value or "")
        except ValueError as error:
            # The message leaves the value out, since it may be a token.
            raise SettingError(f"{quoted(name)} cannot be set to its value ({error}): correct .env") from None
    return dict(os.environ)


def given_variables(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the `SHARP_*` variables that are set, without paths, which mean nothing on another machine."""
    paths = {about.variable for about in parameters(Settings) if about.kind == "Path"}
    variables = os.environ if environment is None else environment
    return {name: value for name, value in variables.items() if name.startswith("SHARP_") and name not in paths}

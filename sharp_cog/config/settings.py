"""The settings of a process: the one reader of `os.environ`.

Options (`sharp_cog.config.options`) belong to one prediction; settings belong to the process that serves it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sharp_cog.errors import SettingError
from sharp_cog.text import quoted, redact

MODELS = ("sharp", "lift", "ml-sharp")
PRECISIONS = ("auto", "float32", "float16", "bfloat16")
CHECKPOINT_URL = "https://ml-site.cdn-apple.com/models/sharp/sharp_2572gikvuh.pt"
CHECKPOINT_SHA256 = "94211a75198c47f61fca7d739ba08a215418d8d398d48fddf023baccc24f073d"

MAX_NUMBER = 1e9
"""The largest setting: seconds and megabytes beyond it overflow in the libraries that take them."""
MAX_NAME_BYTES = 255
"""Of a file or folder, on all common file systems."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Settings of a process; every one has an environment variable of the same name in capitals behind `SHARP_`.

    Attributes:
        model: `sharp` (Apple's weights, our network), `lift` (no weights, needs a depth map) or `ml-sharp`
            (Apple's own package).
        checkpoint: Path of a checkpoint file; None looks in the cache and downloads what is missing.
        cache_dir: Folder of downloaded checkpoints; None is torch hub's checkpoint folder.
        checkpoint_url: Where a missing checkpoint is downloaded from.
        checkpoint_sha256: Hash that a download must have, 64 hexadecimal digits; None accepts any.
        device: `auto`, or a torch device such as `cpu`, `cuda`, `cuda:1`, `mps`.
        max_megapixels: Larger pictures are refused.
        viewer_dir: Folder `public` of the npm package @playcanvas/supersplat-viewer, for the format `html`; None is
            where `scripts/viewer` puts it.
        precision: What the network computes in: `float32`, `float16`, `bfloat16`, or `auto`, as
            `sharp_cog.runtime.precision.choose`.
        cache_weights: Keep a copy of the checkpoint in half precision beside it, 1.3 GB, which loads faster.
        keep_encoding: Keep what the encoders made of the last picture, 170 MB in half precision and 320 MB in float32,
            so that another focal length or depth map for it skips them.
        cuda_graphs: Capture the network as CUDA graphs, on CUDA.

    Raises:
        SettingError: A value is bad; the message names the variable.
    """

    model: str = "sharp"
    checkpoint: Path | None = None
    cache_dir: Path | None = None
    checkpoint_url: str = field(default=CHECKPOINT_URL, repr=False)
    checkpoint_sha256: str | None = CHECKPOINT_SHA256
    device: str = "auto"
    max_megapixels: float = 100.0
    viewer_dir: Path | None = None
    precision: str = "auto"
    cache_weights: bool = False
    keep_encoding: bool = True
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise SettingError(f"SHARP_MODEL is {quoted(self.model)}: choose one of {', '.join(MODELS)}")
        if self.precision not in PRECISIONS:
            raise SettingError(f"SHARP_PRECISION is {quoted(self.precision)}: choose one of {', '.join(PRECISIONS)}")
        _check_address("SHARP_CHECKPOINT_URL", self.checkpoint_url)
        sha256 = self.checkpoint_sha256
        if sha256 is not None and (len(sha256) != 64 or set(sha256) - set("0123456789abcdef")):
            raise SettingError(
                f"SHARP_CHECKPOINT_SHA256 is {quoted(sha256)}: give 64 hexadecimal digits, or 'none' to accept any file"
            )
        if not 0 < self.max_megapixels <= MAX_NUMBER:
            raise SettingError(f"SHARP_MAX_MEGAPIXELS is {self.max_megapixels}: give a number from 0 to {MAX_NUMBER:g}")

    @property
    def max_pixels(self) -> int:
        """`max_megapixels` in pixels."""
        return int(self.max_megapixels * 1e6)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Reads the `SHARP_*` variables; empty ones count as not set.

        Raises:
            SettingError: A variable has a bad value.
        """

        def text(name: str, default: str) -> str:
            return environment.get(name, "").strip() or default

        def path(name: str) -> Path | None:
            return path_of(name, text(name, "")) if text(name, "") else None

        def flag(name: str, default: str) -> bool:
            return bool(_read(name, text(name, default), "bool"))

        megapixels, sha256 = text("SHARP_MAX_MEGAPIXELS", "100"), text("SHARP_CHECKPOINT_SHA256", CHECKPOINT_SHA256)
        try:
            max_megapixels = float(megapixels)
        except ValueError:
            raise SettingError(f"SHARP_MAX_MEGAPIXELS is {quoted(megapixels)}: give a number") from None
        return cls(
            model=text("SHARP_MODEL", "sharp"),
            checkpoint=path("SHARP_CHECKPOINT"),
            cache_dir=path("SHARP_CACHE_DIR"),
            checkpoint_url=text("SHARP_CHECKPOINT_URL", CHECKPOINT_URL),
            checkpoint_sha256=None if sha256.lower() == "none" else sha256.lower(),
            device=text("SHARP_DEVICE", "auto"),
            max_megapixels=max_megapixels,
            viewer_dir=path("SHARP_VIEWER_DIR"),
            precision=text("SHARP_PRECISION", "auto"),
            cache_weights=flag("SHARP_CACHE_WEIGHTS", "false"),
            keep_encoding=flag("SHARP_KEEP_ENCODING", "true"),
            cuda_graphs=flag("SHARP_CUDA_GRAPHS", "true"),
        )


_FOREIGN_VARIABLES = {
    "bucket_endpoint_url": "BUCKET_ENDPOINT_URL",
    "bucket_access_key_id": "BUCKET_ACCESS_KEY_ID",
    "bucket_secret_access_key": "BUCKET_SECRET_ACCESS_KEY",
    "bucket_name": "BUCKET_NAME",
    "runpod_webhook": "RUNPOD_WEBHOOK_POST_OUTPUT",
}
"""Variables that are not called as ours are: RunPod sets or names them."""


def _in_environment(name: str) -> str:
    """The environment variable of a setting."""
    return _FOREIGN_VARIABLES.get(name, f"SHARP_{name.upper()}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceSettings:
    """Settings of what serves requests: HTTP, RunPod, Modal.

    The environment variable of each has its name in capitals behind `SHARP_`, but for those that RunPod names.

    Attributes:
        queue_size: Requests that may wait for the device; further ones are refused.
        request_seconds: How long a request may take, waiting included.
        max_body_megabytes: Larger requests are refused before they are read.
        kept_predictions: Of how many last predictions the splat is kept, so that the same photograph is written in
            another format without being predicted again; 66 MB of memory each.
        fetch_megabytes: Larger files behind a URL are refused.
        fetch_seconds: How long fetching a URL may take.
        fetch_private: Whether URLs may lead to private addresses: for tests and closed networks alone.
        runpod_sync_megabytes: Largest answer that RunPod passes back for `runsync`.
        runpod_async_megabytes: The same for `run`.
        runpod_webhook: Where RunPod takes results and progress; empty anywhere else.
        bucket_endpoint_url: Of an S3-compatible store that takes RunPod's results.
        bucket_access_key_id: Its access key.
        bucket_secret_access_key: Its secret.
        bucket_name: The bucket.
        modal_gpu: The GPU that Modal gives a container.
        modal_idle_seconds: How long Modal keeps an idle container.
        modal_concurrency: Requests that one container takes at once.
        modal_timeout_seconds: How long Modal lets one call take.

    Raises:
        SettingError: A value is bad; the message names the variable.
    """

    queue_size: int = 16
    request_seconds: float = 600.0
    max_body_megabytes: float = 200.0
    kept_predictions: int = 1
    fetch_megabytes: float = 50.0
    fetch_seconds: float = 30.0
    fetch_private: bool = False
    runpod_sync_megabytes: float = 20.0
    runpod_async_megabytes: float = 10.0
    runpod_webhook: str = field(default="", repr=False)
    bucket_endpoint_url: str = field(default="", repr=False)
    bucket_access_key_id: str = field(default="", repr=False)
    bucket_secret_access_key: str = field(default="", repr=False)
    bucket_name: str = ""
    modal_gpu: str = "A100"
    modal_idle_seconds: int = 300
    modal_concurrency: int = 10
    modal_timeout_seconds: int = 600

    def __post_init__(self) -> None:
        for setting in fields(self):
            value, variable = getattr(self, setting.name), _in_environment(setting.name)
            least = 0 if setting.name in ("queue_size", "kept_predictions") else 1
            if setting.type == "int" and not least <= value <= MAX_NUMBER:
                raise SettingError(f"{variable} is {quoted(value)}: give a whole number of {least} to {MAX_NUMBER:g}")
            if setting.type == "float" and not 0 < value <= MAX_NUMBER:
                raise SettingError(f"{variable} is {value}: give a positive number of at most {MAX_NUMBER:g}")
        bucket = {name: getattr(self, name) for name in _BUCKET}
        missing = [_in_environment(name) for name, value in bucket.items() if not value]
        if missing and len(missing) < len(bucket):
            raise SettingError(f"{missing[0]} is not set, but others of the bucket are: set all of them, or none")
        if self.bucket_endpoint_url:
            _check_address("BUCKET_ENDPOINT_URL", self.bucket_endpoint_url)

    @property
    def has_bucket(self) -> bool:
        """Whether there is a bucket for results."""
        return bool(self.bucket_endpoint_url)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ServiceSettings:
        """Reads the variables; empty ones count as not set.

        Raises:
            SettingError: A variable has a bad value.
        """
        values: dict[str, Any] = {}
        for setting in fields(cls):
            variable = _in_environment(setting.name)
            text = environment.get(variable, "").strip()
            if text:
                values[setting.name] = _read(variable, text, str(setting.type))
        return cls(**values)


def path_of(variable: str, text: str) -> Path:
    """The path that a variable holds, `~` and all.

    Raises:
        SettingError: There is nobody of the name behind `~`, or no path can be called so.
    """
    try:
        path = Path("" if "\0" in text else text).expanduser()
    except RuntimeError:
        raise SettingError(f"{variable} is {quoted(text)}, and nobody has that home: write the path out") from None
    if "\0" in text or any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in path.parts):
        raise SettingError(f"{variable} is {quoted(text)}, which no path can be: correct it")
    return path


def process_environment(more: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """The process's environment, for settings that are kept elsewhere.

    Args:
        more: Variables of a file `.env`, to set where they are not, for this process and its children.

    Raises:
        SettingError: One has a name or value that no variable can have.
    """
    for name, value in (more or {}).items():
        try:
            os.environ.setdefault(name, value or "")
        except ValueError as error:
            # The value may be a token.
            raise SettingError(f"{quoted(name)} cannot be set to what it is given ({error}): correct .env") from None
    return dict(os.environ)


def given_variables(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The `SHARP_*` variables that are set, but for paths, which mean nothing on another machine."""
    paths = {"SHARP_CHECKPOINT", "SHARP_CACHE_DIR", "SHARP_VIEWER_DIR"}
    return {name: value for name, value in environment.items() if name.startswith("SHARP_") and name not in paths}


_BUCKET = tuple(name for name in _FOREIGN_VARIABLES if name.startswith("bucket_"))


def _read(variable: str, text: str, type_: str) -> Any:
    try:
        if type_ == "bool":
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return {"int": int, "float": float, "str": str}[type_](text)
    except (KeyError, ValueError):
        wanted = {"bool": "true or false", "int": "a whole number", "float": "a number"}[type_]
        raise SettingError(f"{variable} is {quoted(text)}: give {wanted}") from None


def _check_address(variable: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # Such as a bracket that is not closed, or a port that is none.
        is_address = False
    if not (is_address and url.isprintable() and " " not in url):
        raise SettingError(f"{variable} is {quoted(redact(url))}: give an http or https address")

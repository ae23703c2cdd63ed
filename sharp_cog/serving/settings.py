"""The settings of a process: the one reader of `os.environ`.

Options (`sharp_cog.options`) belong to one prediction; settings belong to the process that serves it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sharp_cog.errors import SettingError

MODELS = ("sharp", "lift", "ml-sharp")
CHECKPOINT_URL = "https://ml-site.cdn-apple.com/models/sharp/sharp_2572gikvuh.pt"
CHECKPOINT_SHA256 = "94211a75198c47f61fca7d739ba08a215418d8d398d48fddf023baccc24f073d"


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

    Raises:
        SettingError: A value is bad; the message names the variable.
    """

    model: str = "sharp"
    checkpoint: Path | None = None
    cache_dir: Path | None = None
    checkpoint_url: str = CHECKPOINT_URL
    checkpoint_sha256: str | None = CHECKPOINT_SHA256
    device: str = "auto"
    max_megapixels: float = 100.0
    viewer_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise SettingError(f"SHARP_MODEL is {self.model!r}: choose one of {', '.join(MODELS)}")
        if not _is_web_address(self.checkpoint_url):
            raise SettingError(f"SHARP_CHECKPOINT_URL is {self.checkpoint_url!r}: give an http or https address")
        sha256 = self.checkpoint_sha256
        if sha256 is not None and (len(sha256) != 64 or set(sha256) - set("0123456789abcdef")):
            raise SettingError(
                f"SHARP_CHECKPOINT_SHA256 is {sha256!r}: give 64 hexadecimal digits, or 'none' to accept any file"
            )
        if not (math.isfinite(self.max_megapixels) and self.max_megapixels > 0):
            raise SettingError(f"SHARP_MAX_MEGAPIXELS is {self.max_megapixels}: give a positive number")

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
            return Path(text(name, "")).expanduser() if text(name, "") else None

        megapixels, sha256 = text("SHARP_MAX_MEGAPIXELS", "100"), text("SHARP_CHECKPOINT_SHA256", CHECKPOINT_SHA256)
        try:
            max_megapixels = float(megapixels)
        except ValueError:
            raise SettingError(f"SHARP_MAX_MEGAPIXELS is {megapixels!r}: give a number") from None
        return cls(
            model=text("SHARP_MODEL", "sharp"),
            checkpoint=path("SHARP_CHECKPOINT"),
            cache_dir=path("SHARP_CACHE_DIR"),
            checkpoint_url=text("SHARP_CHECKPOINT_URL", CHECKPOINT_URL),
            checkpoint_sha256=None if sha256.lower() == "none" else sha256.lower(),
            device=text("SHARP_DEVICE", "auto"),
            max_megapixels=max_megapixels,
            viewer_dir=path("SHARP_VIEWER_DIR"),
        )


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:  # Such as a bracket that is not closed.
        return False
    return parts.scheme in ("https", "http") and bool(parts.hostname)

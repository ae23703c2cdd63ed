"""What both Modal apps run in: the image, the volume of the checkpoint, the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import modal

from sharp_cog.config.settings import ServiceSettings, given_variables
from sharp_cog.formats.html import VIEWER_DIR

ROOT = Path(__file__).parents[2]
CACHE_DIR = "/cache"
REMOTE_VIEWER_DIR = "/opt/supersplat-viewer"

volume = modal.Volume.from_name("sharp-model-cache", create_if_missing=True)
"""Holds the checkpoint: the first container downloads it, the others find it."""


def make_image() -> modal.Image:
    """Our dependencies with the torch of the Cog image, and this package as it is here."""
    image = (
        modal.Image.debian_slim(python_version="3.11")
        .apt_install("gcc", "libc6-dev")  # Triton builds with them what launches its kernels.
        .pip_install_from_requirements(
            str(ROOT / "deploy" / "modal" / "requirements.txt"), extra_options="--require-hashes"
        )
        .env({"SHARP_CACHE_DIR": CACHE_DIR, "SHARP_VIEWER_DIR": REMOTE_VIEWER_DIR})
        .add_local_python_source("sharp_cog", ignore=["**/__pycache__"])
    )
    # In a container this module runs again, where the viewer lies elsewhere.
    if modal.is_local() and VIEWER_DIR.is_dir():
        image = image.add_local_dir(VIEWER_DIR, REMOTE_VIEWER_DIR)
    return image


def make_secret() -> modal.Secret:
    """The settings of who deploys.

    They are no environment of the image, which Modal shows: an address of a checkpoint may hold a password.
    """
    return modal.Secret.from_dict({**given_variables()})


def resources(settings: ServiceSettings) -> dict[str, Any]:
    """What a function or class of Modal is given."""
    return {
        "image": make_image(),
        "secrets": [make_secret()],
        "gpu": settings.modal_gpu,
        "volumes": {CACHE_DIR: volume},
        "scaledown_window": settings.modal_idle_seconds,
        "timeout": settings.modal_timeout_seconds,
    }

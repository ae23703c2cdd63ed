"""The environment of both Modal apps: the image, the volume of the checkpoint, the settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import modal

from sharp_cog.config.services import ServiceSettings
from sharp_cog.config.settings import given_variables
from sharp_cog.formats.html import VIEWER_DIR

ROOT = Path(__file__).parents[2]
CACHE_DIR = "/cache"
REMOTE_VIEWER_DIR = "/opt/supersplat-viewer"

volume = modal.Volume.from_name("sharp-model-cache", create_if_missing=True)
"""Volume of the checkpoint: the first container downloads it, and later containers find it."""


def make_image() -> modal.Image:
    """Return an image with our dependencies, the torch of the Cog image, and this package as it is on disk."""
    image = (
        modal.Image.debian_slim(python_version="3.11")
        .apt_install("gcc", "libc6-dev")  # Triton compiles the launchers of its kernels.
        .pip_install_from_requirements(
            str(ROOT / "deploy" / "modal" / "requirements.txt"), extra_options="--require-hashes"
        )
        .env({"SHARP_CACHE_DIR": CACHE_DIR, "SHARP_VIEWER_DIR": REMOTE_VIEWER_DIR})
        .add_local_python_source("sharp_cog", ignore=["**/__pycache__"])
    )
    # In a container this module runs again, and the viewer lies elsewhere.
    if modal.is_local() and VIEWER_DIR.is_dir():
        image = image.add_local_dir(VIEWER_DIR, REMOTE_VIEWER_DIR)
    return image


def make_secret() -> modal.Secret:
    """Return the settings of the process that deploys, as a secret."""
    # Not as the image's environment, which Modal shows: the URL of a checkpoint may hold a password.
    return modal.Secret.from_dict({**given_variables()})


def resources(settings: ServiceSettings) -> dict[str, Any]:
    """Return the arguments of Modal's decorators for functions and classes that run the model."""
    return {
        "image": make_image(),
        "secrets": [make_secret()],
        "gpu": settings.modal_gpu,
        "volumes": {CACHE_DIR: volume},
        "scaledown_window": settings.modal_idle_seconds,
        "timeout": settings.modal_timeout_seconds,
    }

"""The HTTP service on Modal, with its web page: `modal deploy -m sharp_cog.serving.modal_api`."""

from __future__ import annotations

import modal
from fastapi import FastAPI

from sharp_cog.config.services import ServiceSettings
from sharp_cog.config.settings import Settings
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.serving.http import create_app
from sharp_cog.serving.modal_image import resources, volume

SETTINGS = ServiceSettings.from_environment()

app = modal.App("sharp-api")

PROXY_AUTH = not SETTINGS.api_keys and not SETTINGS.modal_public
"""Whether Modal itself asks for a token, so that no stranger starts a GPU. Browsers cannot send one: the page needs
`SHARP_API_KEY` instead."""


def load() -> SharpPipeline:
    """Load the pipeline, and store a downloaded checkpoint in the volume."""
    pipeline = SharpPipeline.load(Settings.from_environment())
    # Other containers see what is in the volume once it is committed.
    if not modal.is_local():
        volume.commit()
    return pipeline


@app.function(**resources(SETTINGS))
@modal.concurrent(max_inputs=SETTINGS.modal_concurrency)
@modal.asgi_app(requires_proxy_auth=PROXY_AUTH)
def api() -> FastAPI:
    """Return the ASGI application of `sharp_cog.serving.http`."""
    return create_app(load, SETTINGS, frontend="modal")

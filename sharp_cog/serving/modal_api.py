"""The HTTP service on Modal, page and all: `modal deploy -m sharp_cog.serving.modal_api`."""

from __future__ import annotations

import modal
from fastapi import FastAPI

from sharp_cog.config.settings import ServiceSettings, Settings
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.serving.http import create_app
from sharp_cog.serving.modal_image import resources, volume

SETTINGS = ServiceSettings.from_environment()

app = modal.App("sharp-api")


def load() -> SharpPipeline:
    """The pipeline; the checkpoint stays in the volume."""
    pipeline = SharpPipeline.load(Settings.from_environment())
    if not modal.is_local():
        volume.commit()
    return pipeline


@app.function(**resources(SETTINGS))
@modal.concurrent(max_inputs=SETTINGS.modal_concurrency)
@modal.asgi_app()
def api() -> FastAPI:
    """The ASGI application of `sharp_cog.serving.http`."""
    return create_app(load, SETTINGS, door="modal")

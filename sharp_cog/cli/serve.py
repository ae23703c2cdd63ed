"""`sharp-cog serve`: serve the model over HTTP, with a page for browsers."""

from __future__ import annotations

import argparse
import logging
import os
import socket

from sharp_cog.cli.settings import settings_from
from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import NotInstalledError, SettingError


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code, as `sharp_cog.cli.main` documents it."""
    try:
        import uvicorn

        from sharp_cog.serving.http import create_app
    except ModuleNotFoundError as error:
        raise NotInstalledError(
            f"the HTTP service needs {error.name}: .venv/bin/pip install -e '.[http]', or use scripts/serve --http"
        ) from error
    # Importing torch takes seconds, so it comes after the packages that may be missing.
    from sharp_cog.pipeline.pipeline import SharpPipeline

    settings, service = settings_from(arguments), ServiceSettings.from_environment()
    app = create_app(lambda: SharpPipeline.load(settings), service)
    try:
        family = socket.AF_INET6 if ":" in arguments.host else socket.AF_INET
        # Bound before the model is loaded, so that a second service fails at once. Uvicorn takes over the socket.
        listener = socket.create_server((arguments.host, arguments.port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        # An unknown host name has a negative number, for which `os.strerror` has no text.
        number = getattr(error, "errno", None) or 0
        reason = os.strerror(number) if number > 0 else error
        raise SettingError(
            f"cannot listen on {arguments.host}, port {arguments.port}: {reason}: choose another --host or --port"
        ) from error
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    logging.getLogger(__name__).info("open http://%s:%d in a browser; Ctrl-C stops", host, arguments.port)
    config = uvicorn.Config(
        app,
        log_level="info" if arguments.verbose else "warning",
        # After Ctrl-C, requests under way may take the time that every request has.
        timeout_graceful_shutdown=int(service.request_seconds) + 1,
    )
    uvicorn.Server(config).run(sockets=[listener])
    return 0

"""`sharp-cog serve`: serve the model over HTTP, with a page for browsers."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import NoReturn

from sharp_cog.cli import EXIT_FAILED, EXIT_INTERRUPTED
from sharp_cog.cli.settings import settings_from
from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import NotInstalledError, SettingError

_LOG = logging.getLogger(__name__)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code, as `sharp_cog.cli.main` documents it."""
    try:
        import uvicorn  # noqa: F401 - the package that is missing without the extra

        from sharp_cog.serving.access import for_listener
        from sharp_cog.serving.http import create_app
        from sharp_cog.serving.server import Server, listen
    except ModuleNotFoundError as error:
        raise NotInstalledError(
            f"the HTTP service needs {error.name}: .venv/bin/pip install -e '.[http]', or use scripts/serve --http"
        ) from error
    # Importing torch takes seconds, so it comes after the packages that may be missing.
    from sharp_cog.pipeline.pipeline import SharpPipeline

    if arguments.api_key is not None:
        # Not repeated here, since the key may be a good one.
        raise SettingError(
            "--api-key is given, but other users of this machine see command lines: set SHARP_API_KEY, or give "
            "--api-key-file FILE"
        )
    settings, service = settings_from(arguments), ServiceSettings.from_environment(flags=arguments)
    if arguments.api_key_file is not None:
        service = replace(service, api_keys=read_keys(arguments.api_key_file))
    # Before the model is loaded, so that a second service fails at once. Uvicorn takes over the socket.
    listener = listen(arguments.host, arguments.port)
    address, port = listener.getsockname()[:2]
    service = for_listener(service, arguments.host, address)
    app = create_app(lambda: SharpPipeline.load(settings), service)
    host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    _LOG.info("open http://%s:%d in a browser; Ctrl-C stops", host, port)
    if not service.api_keys and not ip_address(address).is_loopback:
        _LOG.warning(
            "everybody who reaches %s may use this service, and sees what it answers in plain text: set SHARP_API_KEY, "
            "for example to the output of `openssl rand -hex 16`, or give --api-key-file FILE; put a proxy with TLS in "
            "front of it, or leave --host out",
            f"this machine at port {port}" if ip_address(address).is_unspecified else f"{host}:{port}",
        )
    server = Server(app, service, log_level="info" if arguments.verbose else "warning")
    try:
        server.run(sockets=[listener])
        exit_code = EXIT_FAILED if server.has_failed else 0
    except KeyboardInterrupt:
        if not server.has_threads:
            raise
        exit_code = EXIT_INTERRUPTED
    # Decoding or the loading of the model may take minutes, and Python would wait for the thread at its end.
    if server.has_threads:
        _leave(exit_code)
    return exit_code


def _leave(exit_code: int) -> NoReturn:
    """End the process without waiting for its threads."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def read_keys(path: str) -> tuple[str, ...]:
    """Return the keys in a file, one on each line; empty lines and lines that begin with `#` are left out.

    Raises:
        SettingError: The file cannot be read, or has no key.
    """
    try:
        lines = [line.strip() for line in Path(path).expanduser().read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise SettingError(f"--api-key-file {path}: {reason}: give a file with a key on each line") from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        # A service without keys is open to everybody, which is not what the flag is for.
        raise SettingError(f"--api-key-file {path}: the file has no key: write one on its first line")
    return keys

"""The HTTP service in this process, on a real socket."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import requests
import uvicorn
from fastapi import FastAPI

from sharp_cog.config.services import ServiceSettings
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.serving.http import create_app


@dataclass(kw_only=True)
class Service:
    """A service that listens.

    Attributes:
        url: Where.
        server: To stop it before the block ends.
    """

    url: str
    server: uvicorn.Server

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while requests.get(f"{self.url}/health", timeout=10).status_code != 200:
            assert time.monotonic() < deadline, "the service does not become ready"
            time.sleep(0.02)


@contextmanager
def serving(
    load: Callable[[], SharpPipeline], settings: ServiceSettings | None = None, *, is_ready: bool = True
) -> Iterator[Service]:
    """Serves until the block ends.

    Args:
        load: Gets the pipeline.
        settings: None lets URLs lead to loopback, and is otherwise the defaults.
        is_ready: Whether to wait until the pipeline is loaded.
    """
    with listening(create_app(load, settings or ServiceSettings(fetch_private=True))) as service:
        if is_ready:
            service.wait_until_ready()
        yield service


@contextmanager
def listening(app: FastAPI) -> Iterator[Service]:
    """Serves an application until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=60))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    service = Service(url=f"http://127.0.0.1:{listener.getsockname()[1]}", server=server)
    try:
        while not server.started:
            assert thread.is_alive(), "the service does not start"
            time.sleep(0.01)
        yield service
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the service does not stop"

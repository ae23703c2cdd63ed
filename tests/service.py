"""The HTTP service in this process, on a real socket."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import requests
from fastapi import FastAPI

from sharp_cog.config.services import ServiceSettings
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.serving.http import create_app
from sharp_cog.serving.server import Server


@dataclass(kw_only=True)
class Service:
    """A running service.

    Attributes:
        url: Address of the service.
        server: Server, by which a test can stop the service early.
        thread: Thread in which it runs.
    """

    url: str
    server: Server
    thread: threading.Thread

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
    """Serve until the block ends.

    Args:
        load: Loads the pipeline.
        settings: None means the defaults, with private URLs allowed.
        is_ready: Whether to wait until the pipeline is loaded.
    """
    settings = settings or ServiceSettings(fetch_private=True)
    with listening(create_app(load, settings), settings) as service:
        if is_ready:
            service.wait_until_ready()
        yield service


@contextmanager
def listening(app: FastAPI, settings: ServiceSettings | None = None) -> Iterator[Service]:
    """Serve an application of `create_app` until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(app, settings or ServiceSettings())
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    service = Service(url=f"http://127.0.0.1:{listener.getsockname()[1]}", server=server, thread=thread)
    try:
        while not server.started:
            assert thread.is_alive(), "the service does not start"
            time.sleep(0.01)
        yield service
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive(), "the service does not stop"

"""The HTTP service without a socket, so that no bytes of a request are changed on the way."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import InputError
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.serving.http import create_app
from tests.gated import Gated

REFUSALS = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}
"""Error codes of the statuses with one code; 422 has the codes of all input errors."""


@dataclass
class Answer:
    """Answer of the service."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class InProcess:
    """A service that is ready for requests, and takes any bytes for an image."""

    def __init__(self, pipeline: SharpPipeline, settings: ServiceSettings) -> None:
        self._loop = asyncio.new_event_loop()
        self._app = create_app(lambda: pipeline, settings)
        self._lifespan = self._app.router.lifespan_context(self._app)
        self._loop.run_until_complete(self._lifespan.__aenter__())
        while self.ask("GET", "/health").status != 200:
            self._loop.run_until_complete(asyncio.sleep(0.01))

    def close(self) -> None:
        """Stop the service, and delete its folder."""
        self._loop.run_until_complete(self._lifespan.__aexit__(None, None, None))
        self._loop.close()

    def ask(self, method: str, target: str, headers: Iterable[tuple[bytes, bytes]] = (), body: bytes = b"") -> Answer:
        """Return the answer to a request; an exception that leaves the service is raised."""
        return self._loop.run_until_complete(asyncio.wait_for(self._ask(method, target, headers, body), 30))

    async def _ask(self, method: str, target: str, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> Answer:
        path, _, query = target.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode("latin-1", "replace"),
            "query_string": query.encode("latin-1", "replace"),
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in headers],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        half = len(body) // 2
        messages = [
            {"type": "http.request", "body": body[:half], "more_body": True},
            {"type": "http.request", "body": body[half:], "more_body": False},
        ]
        answer, is_over = Answer(), asyncio.Event()

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop(0)
            await is_over.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
            answer.body += message.get("body", b"")

        await self._app(scope, receive, send)
        is_over.set()
        return answer


@functools.cache
def in_process() -> InProcess:
    """Return the service of this process, which refuses private URLs."""
    return InProcess(Gated(), ServiceSettings(request_seconds=20, max_body_megabytes=1, kept_predictions=0))


def judge(answer: Answer) -> None:
    """Check the promises that hold for every answer.

    Raises:
        InputError: The service has refused the request in the promised form; the error has the answer's code.
    """
    if answer.status == 200:
        return
    told = json.loads(answer.body)
    assert told.keys() == {"error", "code"}, told
    assert answer.headers["content-type"] == "application/json"
    assert "Traceback" not in told["error"]
    if answer.status == 422:
        assert told["code"] == "not_installed" or told["code"] in _codes(InputError), told
    else:
        assert REFUSALS.get(answer.status) == told["code"], (answer.status, told)
    error = InputError(told["error"])
    error.code = told["code"]
    raise error


def _codes(error: type[InputError]) -> set[str]:
    return {error.code}.union(*(_codes(kind) for kind in error.__subclasses__()))

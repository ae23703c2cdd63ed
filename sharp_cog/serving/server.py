"""The server under the HTTP service: uvicorn with bounds for connections, and an end that waits for nobody.

uvicorn itself has no time limit for headers, none for connections that are to be closed, and waits for every client
when it stops.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h11
import uvicorn
from starlette.applications import Starlette
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from sharp_cog.config.process import raise_descriptor_limit
from sharp_cog.config.services import ServiceSettings
from sharp_cog.errors import SettingError
from sharp_cog.serving.transport import ABORT

LINGER_SECONDS = 2.0
"""Seconds for which a connection that is to be closed still takes what its client sends."""
LINGER_BYTES = 64_000_000
"""Maximum number of bytes that are taken in that time."""
DESCRIPTOR_SHARE = 0.75
"""Share of the process's descriptors for connections; uploads, answers and fetches need others."""
_SEND_ROOM_BYTES = 1 << 17
"""Bytes of an answer that the system keeps unsent. With megabytes, it could not be seen whether a client reads."""
_TCP_NOTSENT_LOWAT = 25
"""Option of Linux's sockets, from netinet/tcp.h; Python names it from version 3.12 on."""
_BODY = b'{"error":"too many connections: try again in 1 s","code":"busy"}'
_REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: %d\r\nRetry-After: 1\r\n"
    b"Connection: close\r\n\r\n" % len(_BODY) + _BODY
)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        SettingError: The address cannot be used.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        # An unknown host name has a negative number, for which `os.strerror` has no text.
        number = getattr(error, "errno", None) or 0
        reason = os.strerror(number) if number > 0 else error
        raise SettingError(
            f"cannot listen on {host}, port {port}: {reason}: choose another --host or --port"
        ) from error


class _Config(uvicorn.Config):
    """uvicorn's configuration, with the settings that `_Protocol` needs."""

    def __init__(self, app: Starlette, settings: ServiceSettings, log_level: str) -> None:
        super().__init__(
            app,
            # uvicorn takes httptools where it is installed, which has no limit for headers.
            http=_Protocol,
            ws="none",
            log_level=log_level,
            # The service logs requests itself. uvicorn's log has their queries, in which addresses may be signed.
            access_log=False,
            h11_max_incomplete_event_size=1000 * settings.max_header_kilobytes,
            # The last resort against a prediction that never ends: longer, no request may take.
            timeout_graceful_shutdown=int(settings.request_seconds) + 1,
        )
        self.settings = settings
        self.application = app
        # In the order in which they became idle.
        self.idle: dict[_Protocol, None] = {}
        descriptors = raise_descriptor_limit()
        self.max_connections = min(settings.max_connections, int(DESCRIPTOR_SHARE * descriptors))


class Server(uvicorn.Server):
    """Serves an application whose `state` is that of `sharp_cog.serving.http.create_app`.

    Attributes:
        has_failed: Whether the server has ended because the service has failed.
        has_threads: Whether a thread of the service was still at work when the server ended.
    """

    def __init__(self, app: Starlette, settings: ServiceSettings, *, log_level: str = "warning") -> None:
        super().__init__(_Config(app, settings, log_level))
        self._app = app
        self._settings = settings
        self.has_failed = self.has_threads = False

    async def on_tick(self, counter: int) -> bool:
        """Return whether the server should end: it was told to, or the service has failed and the settings say so."""
        if self._settings.exit_on_failure and self._app.state.has_failed():
            self.has_failed = True
            return True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: Any = None) -> None:
        """Refuse and drop what has not reached the device, wait for the rest, and cut clients that take too long."""
        self._app.state.stop()
        cutting = asyncio.create_task(self._cut_off())
        try:
            await super().shutdown(sockets)
        finally:
            cutting.cancel()
            self.has_threads = not self._app.state.is_closed

    async def _cut_off(self) -> None:
        await self._app.state.idle()
        await asyncio.sleep(self._settings.stop_seconds)
        for connection in list(self.server_state.connections):
            if isinstance(connection, _Protocol):
                connection.abort()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let SIGTERM end the server with success: uvicorn would end the process by the signal afterwards."""
        with super().capture_signals():
            yield
            self._captured_signals = [number for number in self._captured_signals if number != signal.SIGTERM]


class _Protocol(H11Protocol):
    """One connection, with a time limit for the headers of each request, and with a patient end."""

    config: _Config

    def __init__(self, config: _Config, *rest: Any, **named: Any) -> None:
        super().__init__(config, *rest, **named)
        self._timer: asyncio.TimerHandle | None = None
        self._num_unsent = 0
        self._num_discarded = 0
        self._is_closing = False
        application = self.app

        async def with_abort(scope: Scope, receive: Receive, send: Send) -> None:
            scope.setdefault("extensions", {})[ABORT] = self.abort
            await application(scope, receive, send)

        self.app = with_abort

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request, if there is room for the connection."""
        self._real = transport
        sock = transport.get_extra_info("socket")
        if sock is not None and sys.platform == "linux":
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _SEND_ROOM_BYTES)
        super().connection_made(_Transport(transport, self))  # type: ignore[arg-type]
        if len(self.connections) > self.config.max_connections and not self._make_room():
            self.config.application.state.refused("connections")
            transport.write(_REFUSAL)
            self._is_closing = True
            transport.close()
            self._start_timer(LINGER_SECONDS)
            return
        self._watch()

    def _make_room(self) -> bool:
        """Cut the connection that has been without a request for longest; return False if each one has a request."""
        oldest = next(iter(self.config.idle), None)
        if oldest is None:
            return False
        self.config.application.state.refused("idle_connection")
        oldest.abort()
        return True

    def data_received(self, data: bytes) -> None:
        """Pass bytes on to the parser, unless the connection is to be closed."""
        if not self._is_closing:
            super().data_received(data)
            return
        self._num_discarded += len(data)
        if self._num_discarded > LINGER_BYTES:
            self._real.abort()

    def handle_events(self) -> None:
        """Handle what the parser has found, and note whether a request is under way."""
        super().handle_events()
        self._watch()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._is_closing = True
        self._end_idleness()
        super().connection_lost(exc)

    def abort(self) -> None:
        """Cut the connection, whatever is still to be sent."""
        self._end_idleness()
        sock = self._real.get_extra_info("socket")
        if sock is not None:
            # By a reset: the system would otherwise keep what a client does not read, and try to send it for minutes.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Before the transport reports it, so that uvicorn does not miss the rest of an answer.
        if self.cycle is not None:
            self.cycle.disconnected = True
        self._real.abort()

    def close(self) -> None:
        """Close the connection once its answer is sent.

        If the client is still sending, its bytes are taken for a moment. The system would otherwise reset the
        connection, and the client might never see the answer.
        """
        if self._is_closing:
            return
        self._is_closing = True
        self._end_idleness()
        is_sending = self.conn.their_state in (h11.SEND_BODY, h11.ERROR)
        if is_sending and self._real.can_write_eof() and not self._real.is_closing():
            self._real.write_eof()
            self.flow.resume_reading()
        else:
            self._real.close()
        has_rest = self._real.get_write_buffer_size() > 0
        self._start_timer(self.config.settings.stall_seconds if has_rest else LINGER_SECONDS)

    @property
    def is_closing(self) -> bool:
        """Whether the connection is closed, or to be closed."""
        return self._is_closing or self._real.is_closing()

    def _watch(self) -> None:
        """Start the time limit for headers if no request is under way, and stop it if there is one."""
        if self._is_closing:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._end_idleness()
        elif self._timer is None:
            self.config.idle[self] = None
            self._start_timer(self.config.settings.header_seconds)

    def _start_timer(self, seconds: float) -> None:
        self._num_unsent = self._real.get_write_buffer_size()
        self._timer = self.loop.call_later(seconds, self._on_timer, seconds)

    def _end_idleness(self) -> None:
        self.config.idle.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self, seconds: float) -> None:
        # The end of an answer may still be on its way to a slow client.
        if 0 < self._real.get_write_buffer_size() < self._num_unsent:
            self._start_timer(seconds)
        else:
            if not self._is_closing:
                self.config.application.state.refused("headers")
            self._real.abort()


class _Transport:
    """A transport whose end is left to the protocol; all else is the transport's own."""

    def __init__(self, transport: asyncio.Transport, protocol: _Protocol) -> None:
        self._transport = transport
        self._protocol = protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        self._protocol.close()

    def is_closing(self) -> bool:
        return self._protocol.is_closing

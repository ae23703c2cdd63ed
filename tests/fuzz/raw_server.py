"""A server on loopback that answers every request with the same bytes and closes the connection."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from typing import Any


class RawServer:
    """Answers every request with `answer`.

    Attributes:
        answer: Status, headers and body, as they go over the wire.
        url: Address of the server.
    """

    def __init__(self) -> None:
        self.answer = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5)
            received = b""
            while b"\r\n\r\n" not in received and (block := connection.recv(65536)):
                received += block
            connection.sendall(self.answer)
            connection.shutdown(socket.SHUT_WR)
            # Closing a socket with unread bytes resets the connection, and the client would lose the answer.
            while connection.recv(65536):
                pass


@functools.cache
def raw_server() -> RawServer:
    """Return the server of this process, and make all other hosts unknown."""
    system = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **rest: Any) -> Any:
        if host not in ("127.0.0.1", "localhost", None):
            raise socket.gaierror(f"{host!r} is not known")
        return system(host, *args, **rest)

    socket.getaddrinfo = getaddrinfo
    return RawServer()


def raw(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """Return an answer as it goes over the wire.

    It announces that the server closes the connection, so that no client reuses a connection that is about to end.
    """
    head = [f"HTTP/1.1 {status}", "Connection: close", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode("latin-1") + body

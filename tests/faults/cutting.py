"""A web server that cuts its connections after a number of bytes of an answer, or of a request's body."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class CuttingServer:
    """Serves `content` to GET, with ranges, and takes PUT.

    Attributes:
        content: Answer to GET.
        cuts: For each of the next connections, the number of bytes after which it is cut: bytes of the request's body
            if it has one, else of the answer. Later connections are not cut.
        always: Number of bytes after which every connection is cut; None means that `cuts` decides.
        is_reset: Whether a cut resets the connection, rather than ending it.
        received: Bodies that arrived whole.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.cuts: list[int] = []
        self.always: int | None = None
        self.is_reset = False
        self.received: list[bytes] = []
        self.num_connections = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/folder/model.pt"

    def serve(self) -> None:
        """Answer connections until `close`."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _answer(self, connection: socket.socket) -> None:
        with self._lock:
            self.num_connections += 1
            cut = self.always if self.always is not None else self.cuts.pop(0) if self.cuts else None
        with connection:
            try:
                self._talk(connection, cut)
            except OSError:
                return  # The client has disconnected.

    def _talk(self, connection: socket.socket, cut: int | None) -> None:
        connection.settimeout(10)
        head = b""
        while b"\r\n\r\n" not in head:
            block = connection.recv(4096)
            if not block:
                return
            head += block
        head, _, rest = head.partition(b"\r\n\r\n")
        body = bytearray(rest)
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if length:
            wanted = int(length[1]) if cut is None else min(cut, int(length[1]))
            while len(body) < wanted and (block := connection.recv(min(1 << 16, wanted - len(body)))):
                body += block
            if cut is not None:
                self._cut(connection)
                return
            self.received.append(bytes(body))
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        answer = self.answer(head)
        connection.sendall(answer[:cut])
        if cut is not None and cut < len(answer):
            self._cut(connection)

    def answer(self, head: bytes) -> bytes:
        """Return the whole answer to a GET."""
        start, end, status, more = 0, len(self.content), "200 OK", ""
        wanted = re.search(rb"(?i)range: bytes=(\d+)-(\d+)", head)
        if wanted:
            start, end = int(wanted[1]), min(int(wanted[2]) + 1, end)
            status, more = "206 Partial Content", f"Content-Range: bytes {start}-{end - 1}/{len(self.content)}\r\n"
        more += 'ETag: "one"\r\nConnection: close\r\n'
        lines = f"HTTP/1.1 {status}\r\nContent-Length: {end - start}\r\n{more}\r\n"
        return lines.encode() + self.content[start:end]

    def _cut(self, connection: socket.socket) -> None:
        if self.is_reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def cutting(content: bytes) -> Iterator[CuttingServer]:
    """Serve until the block ends."""
    server = CuttingServer(content)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.close()
        thread.join(10)

"""Clients of an attack: raw sockets that send what no library would, and stop where it hurts."""

from __future__ import annotations

import contextlib
import json
import re
import select
import selectors
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

BOUNDARY = "attack"
_CHUNK = bytes(1 << 16)


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """Address of a server under attack.

    Attributes:
        host: Host; the server answers to its name.
        port: Port.
        content_type: Type of the bodies that it takes.
    """

    host: str
    port: int
    content_type: str = f"multipart/form-data; boundary={BOUNDARY}"

    def connect(self, *, receive_bytes: int | None = None, seconds: float = 30.0) -> socket.socket:
        """Connect, with a small receive buffer if a client is not going to read."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.settimeout(seconds)
        try:
            sock.connect((self.host, self.port))
        except BaseException:
            sock.close()
            raise
        return sock


@dataclass(slots=True)
class Outcomes:
    """Ends of the attack's own requests: statuses with codes, and how connections ended."""

    counts: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, outcome: str) -> None:
        """Count an end."""
        with self._lock:
            self.counts[outcome] = self.counts.get(outcome, 0) + 1


Client = Callable[[threading.Event, Outcomes], None]
"""Body of one client's thread: it works until the event is set, and records its end."""


@contextmanager
def attacking(clients: list[Client]) -> Iterator[Outcomes]:
    """Run clients in threads, from the start of the block to its end."""
    is_over, outcomes = threading.Event(), Outcomes()

    def run(client: Client) -> None:
        try:
            client(is_over, outcomes)
        except OSError as error:
            outcomes.add(type(error).__name__)

    threads = [threading.Thread(target=run, args=(client,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield outcomes
    finally:
        is_over.set()
        for thread in threads:
            thread.join(60)


def repeated(client: Client) -> Client:
    """Return a client that begins again as soon as it has ended."""

    def clients(is_over: threading.Event, outcomes: Outcomes) -> None:
        while not is_over.is_set():
            try:
                client(is_over, outcomes)
            except OSError as error:
                outcomes.add(type(error).__name__)
            is_over.wait(0.05)

    return clients


def head(address: Address, path: str, length: int, *, method: str = "POST", **headers: str) -> bytes:
    """Return the head of a request with a body."""
    named = {"Host": address.host, "Content-Type": address.content_type, "Content-Length": str(length)}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    return (f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {named[name]}\r\n" for name in named) + "\r\n").encode()


def form(files: dict[str, bytes], **fields: str) -> bytes:
    """Return a form as multipart/form-data."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    parts += [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in files.items()
    ]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def read_outcome(sock: socket.socket) -> str:
    """Read an answer to its head, and return its status and code."""
    content = b""
    with contextlib.suppress(TimeoutError):
        while chunk := sock.recv(1 << 16):
            content += chunk
            if b"}" in content:
                break
    if not content:
        return "closed"
    status = content.split(b" ", 2)[1].decode("latin-1") if content.startswith(b"HTTP/") else "?"
    code = re.search(rb'"code":\s*("[^"]*")', content)
    return f"{status} {json.loads(code[1])}" if code else status


def until_closed(sock: socket.socket, is_over: threading.Event, outcomes: Outcomes) -> None:
    """Send nothing more, and wait until the server ends the connection or the attack is over."""
    sock.settimeout(0.2)
    while not is_over.is_set():
        try:
            content = sock.recv(1 << 12, socket.MSG_PEEK)
        except TimeoutError:
            continue
        if content:
            sock.settimeout(2)
            outcomes.add(read_outcome(sock))
        else:
            outcomes.add("closed")
        return
    outcomes.add("held to the end")


def stalling_upload(address: Address, path: str, *, declared: int, sent: int, rate: float = 0.0) -> Client:
    """Return a client that declares a large body, sends a part of it, and then nothing, or `rate` bytes a second."""

    def client(is_over: threading.Event, outcomes: Outcomes) -> None:
        with address.connect() as sock:
            begin = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'.encode()
            try:
                sock.sendall(head(address, path, declared) + begin)
                left = sent
                while left > 0 and not is_over.is_set():
                    left -= sock.send(_CHUNK[: min(left, len(_CHUNK))])
                while rate and not is_over.wait(0.1):
                    sock.send(_CHUNK[: max(1, int(rate / 10))])
            except OSError:
                outcomes.add(read_outcome(sock))
                return
            until_closed(sock, is_over, outcomes)

    return client


def unread_answer(address: Address, path: str, body: bytes) -> Client:
    """Return a client that asks for an answer, reads its head and nothing more."""

    def client(is_over: threading.Event, outcomes: Outcomes) -> None:
        with address.connect(receive_bytes=4096, seconds=300) as sock:
            sock.sendall(head(address, path, len(body)) + body)
            first = sock.recv(12)
            if first[9:12] != b"200":
                outcomes.add(first[9:12].decode("latin-1") or "closed")
                return
            # The end of the connection is reported even though the answer before it is unread.
            end = select.poll()
            end.register(sock, select.POLLRDHUP)
            while not is_over.is_set():
                if end.poll(200):
                    outcomes.add("cut")
                    return
            outcomes.add("held to the end")

    return client


def asking(address: Address, path: str, body: bytes) -> Client:
    """Return a client that sends one whole request and reads its answer."""

    def client(is_over: threading.Event, outcomes: Outcomes) -> None:
        with address.connect(seconds=600) as sock:
            sock.sendall(head(address, path, len(body)) + body)
            until_closed(sock, is_over, outcomes)

    return client


def repeating(address: Address, request: bytes, *, leaves: bool = False) -> Client:
    """Return a client that sends a request again and again, and reads each answer or leaves at once."""

    def client(is_over: threading.Event, outcomes: Outcomes) -> None:
        while not is_over.wait(0.05):
            with address.connect() as sock:
                sock.sendall(request)
                outcomes.add("left" if leaves else read_outcome(sock))

    return client


def half_open(address: Address, *, num: int) -> Client:
    """Return a client that holds many connections with half a header each, and replaces those that are cut."""

    def client(is_over: threading.Event, outcomes: Outcomes) -> None:
        held = selectors.DefaultSelector()
        try:
            while not is_over.is_set():
                # Some at a time, so that connections that are cut at once do not keep this process busy.
                for _ in range(min(10, num - len(held.get_map()))):
                    try:
                        sock = address.connect(seconds=1)
                        sock.sendall(f"POST / HTTP/1.1\r\nHost: {address.host}\r\n".encode())
                    except OSError:
                        outcomes.add("not connected")
                        break
                    held.register(sock, selectors.EVENT_READ)
                for key, _ in held.select(0.05):
                    held.unregister(key.fileobj)
                    cast(socket.socket, key.fileobj).close()
                    outcomes.add("cut")
        finally:
            for key in list(held.get_map().values()):
                cast(socket.socket, key.fileobj).close()
                outcomes.add("held to the end")
            held.close()

    return client


def long_headers(address: Address, *, num_bytes: int) -> Client:
    """Return a client that sends headers without end."""

    def client(is_over: threading.Event, outcomes: Outcomes) -> None:
        with address.connect() as sock:
            sock.sendall(f"GET / HTTP/1.1\r\nHost: {address.host}\r\n".encode())
            line = b"X-Filler: " + b"a" * 65_000 + b"\r\n"
            try:
                for _ in range(num_bytes // len(line)):
                    if is_over.is_set():
                        return
                    sock.sendall(line)
            except OSError:
                outcomes.add(read_outcome(sock))
                return
            until_closed(sock, is_over, outcomes)

    return client

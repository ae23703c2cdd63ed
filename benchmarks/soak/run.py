"""A whole soak: the server, the mix, the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from benchmarks.soak.cog_server import soaked_cog
from benchmarks.soak.drive import soak
from benchmarks.soak.http_service import SoakedHttp, soaked_http
from benchmarks.soak.mix import Request, mix
from benchmarks.soak.report import Report
from benchmarks.soak.server import Server

SERVERS: dict[str, Callable[[Path, Request], AbstractContextManager[Server]]] = {"cog": soaked_cog, "http": soaked_http}


def run(
    frontend: str,
    folder: Path,
    good: Sequence[Request],
    right: Mapping[int, str],
    *,
    num_requests: int,
    num_clients: int,
    bad_share: float = 0.1,
    cancelled_share: float = 0.1,
    seed: int = 0,
    on_done: Callable[[], object] = lambda: None,
    is_attacked: bool = False,
) -> Report:
    """Start a server, soak it, and stop it.

    Args:
        frontend: One of `SERVERS`.
        folder: An empty folder for all files of the server.
        good: Good requests, by `mix.recipes`.
        right: Digest of the right answer to each.
        num_requests: Number of requests in the mix.
        num_clients: Number of clients at once; Cog's server takes one prediction at a time, so it has one.
        bad_share: Share of bad requests.
        cancelled_share: Share of cancelled requests.
        seed: Seed of the mix.
        on_done: Called after every request.
        is_attacked: Whether attackers of all kinds work beside the clients; for the HTTP service alone.
    """
    with SERVERS[frontend](folder, good[0]) as server:
        cases = mix(
            good,
            server.faults(),
            server.moments,
            num_requests=num_requests,
            bad_share=bad_share,
            cancelled_share=cancelled_share,
            seed=seed,
        )
        more: dict[str, Any] = {}
        if is_attacked:
            assert isinstance(server, SoakedHttp)
            more["beside"] = server.attackers
        return soak(server, cases, right, num_clients=1 if frontend == "cog" else num_clients, on_done=on_done, **more)

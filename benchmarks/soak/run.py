"""A soak from beginning to end: the server, the mix, the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.soak.cog_door import cog_door
from benchmarks.soak.door import Door
from benchmarks.soak.drive import soak
from benchmarks.soak.http_door import http_door
from benchmarks.soak.mix import Request, mix
from benchmarks.soak.report import Report

DOORS: dict[str, Callable[[Path, Request], AbstractContextManager[Door]]] = {"cog": cog_door, "http": http_door}


def run(
    door_name: str,
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
) -> Report:
    """Starts a server, soaks it, stops it.

    Args:
        door_name: One of `DOORS`.
        folder: An empty one, for all that the server writes.
        good: As `mix.recipes`.
        right: The digest of the right answer to each.
        num_requests: Of the mix.
        num_clients: At once; Cog's server takes one prediction at a time, and so one client.
        bad_share: Of the requests.
        cancelled_share: Of the requests.
        seed: Of the mix.
        on_done: Called after every request.
    """
    with DOORS[door_name](folder, good[0]) as door:
        cases = mix(
            good,
            door.faults(),
            door.moments,
            num_requests=num_requests,
            bad_share=bad_share,
            cancelled_share=cancelled_share,
            seed=seed,
        )
        return soak(door, cases, right, num_clients=1 if door_name == "cog" else num_clients, on_done=on_done)

"""A soak from beginning to end: the right answers, the server, the mix."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.soak.cog_door import cog_door
from benchmarks.soak.door import Door
from benchmarks.soak.drive import soak
from benchmarks.soak.http_door import http_door
from benchmarks.soak.mix import Request, mix, recipes
from benchmarks.soak.report import Report
from benchmarks.soak.right import right_answers
from sharp_cog import formats
from sharp_cog.errors import NotInstalledError
from sharp_cog.options import PredictOptions
from sharp_cog.pipeline import SharpPipeline
from sharp_cog.serving.settings import Settings

DOORS: dict[str, Callable[[Path, Request], AbstractContextManager[Door]]] = {"cog": cog_door, "http": http_door}
NUM_RECIPES = 40


def run(
    door_name: str,
    folder: Path,
    *,
    num_requests: int,
    num_clients: int,
    num_recipes: int = NUM_RECIPES,
    bad_share: float = 0.1,
    cancelled_share: float = 0.1,
    seed: int = 0,
    on_done: Callable[[], object] = lambda: None,
) -> Report:
    """Starts a server, soaks it, stops it.

    Args:
        door_name: One of `DOORS`.
        folder: An empty one, for all that the server writes.
        num_requests: Of the mix.
        num_clients: At once; Cog's server takes one prediction at a time, and so one client.
        num_recipes: Different good requests.
        bad_share: Of the requests.
        cancelled_share: Of the requests.
        seed: Of the mix.
        on_done: Called after every request.
    """
    pipeline = SharpPipeline.load(Settings(model="lift", device="cpu"))
    good = recipes("cog" if door_name == "cog" else "http", num_recipes, without=missing_formats())
    right = right_answers(pipeline, good, range(len(good)))
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


def missing_formats() -> list[str]:
    """Formats for which something is not installed: the viewer of pages comes by npm."""
    missing = []
    for name in formats.FORMATS:
        try:
            formats.check(PredictOptions(output_format=name))
        except NotInstalledError:
            missing.append(name)
    return missing

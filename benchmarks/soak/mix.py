"""What is asked of a server: a mix of good, bad and cancelled requests, the same one for a seed.

Requests come in blocks of 50, and each block has the same good requests in another order, so that what one block leaves
behind can be compared with what any other does.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Literal

from benchmarks.soak.pictures import NUM_PICTURES, PANORAMA, Picture, picture

BLOCK = 50
ARRAYS = ("json", "npz")
"""Outputs that only HTTP has, in place of a splat."""

Kind = Literal["good", "bad", "cancelled"]
Door = Literal["http", "cog"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for, whatever the door.

    Attributes:
        image: A picture file, or an address in its place; None sends none.
        depth: A depth map.
        options: Of the prediction, but for the output's format.
        output: A format of splats, or one of `ARRAYS`.
        by_url: Whether the server has to fetch the picture.
    """

    image: bytes | str | None
    depth: bytes | None
    options: Mapping[str, object]
    output: str = "ply"
    by_url: bool = False


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A body that no well-behaved client sends.

    Attributes:
        body: As it goes on the wire.
        content_type: What it claims to be.
        num_bytes_claimed: What it says of its length; None is the truth.
    """

    body: bytes
    content_type: str
    num_bytes_claimed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One request of the mix.

    Attributes:
        kind: What is to come of it.
        name: What it is, for people: the output's format, what is wrong with it, or the moment of giving up.
        request: What is sent.
        expected: The outcome that alone is right: `ok`, `cancelled`, or how the server must refuse it.
        recipe: Which right answer it has; of a cancelled one, where the cancelling came too late.
        fraction: From 0 to 1, where within its moment a request is given up.
    """

    kind: Kind
    name: str
    request: Request | Raw
    expected: str
    recipe: int | None = None
    fraction: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something wrong with a request.

    Attributes:
        name: For people.
        request: What is sent.
        expected: How the door must refuse it.
    """

    name: str
    request: Request | Raw
    expected: str


_WHOLE: tuple[tuple[str, dict[str, object]], ...] = (("splat", {}), ("apple_ply", {}))
_OUTPUTS: tuple[tuple[str, dict[str, object]], ...] = (
    ("ply", {"max_gaussians": 20_000}),
    _WHOLE[0],
    ("spz", {"max_gaussians": 50_000, "focal_length_px": 900.0}),
    ("sog", {"max_gaussians": 20_000, "axes": "opengl"}),
    ("json", {"max_gaussians": 2_000}),
    _WHOLE[1],
    ("compressed_ply", {"max_gaussians": 100_000, "min_opacity": 0.3}),
    ("glb", {"max_gaussians": 5_000, "focal_length_mm": 28.0}),
    ("npz", {"depth_scale": 2.0, "max_gaussians": 20_000}),
    ("html", {"max_gaussians": 5_000}),
    ("ply", {"depth_mode": "fixed", "back_surface_factor": 1.5, "depth_offset": -0.25, "max_gaussians": 1_000}),
)


def recipes(door: str, num_recipes: int, *, without: Sequence[str] = ()) -> list[Request]:
    """Different good requests, two of them for whole splats.

    Args:
        door: `cog` or `http`; outputs that it does not have become a `ply`.
        num_recipes: How many.
        without: Formats that are not installed.
    """
    pictures: dict[int, Picture] = {}
    made = []
    for number in range(num_recipes):
        which = number % NUM_PICTURES
        output, options = _OUTPUTS[number % len(_OUTPUTS)]
        if output in without or (door == "cog" and output in ARRAYS):
            output = "ply"
        if number == BLOCK // 2 and "mp4" not in without:
            # One is enough: a film of any other picture takes ten seconds.
            which, output, options = PANORAMA, "mp4", {"max_gaussians": 500}
        pictures.setdefault(which, picture(which))
        made.append(
            Request(
                image=pictures[which].image,
                depth=pictures[which].depth,
                options=options,
                output=output,
                by_url=number % 8 == 3,
            )
        )
    return made


def mix(
    good: Sequence[Request],
    faults: Sequence[Fault],
    moments: Sequence[str],
    *,
    num_requests: int,
    bad_share: float = 0.1,
    cancelled_share: float = 0.1,
    seed: int = 0,
) -> list[Case]:
    """The requests in their order.

    Args:
        good: As `recipes`.
        faults: All that the door knows; each has its turn.
        moments: At which a request may be given up; each has its turn.
        num_requests: In all.
        bad_share: Of them.
        cancelled_share: Of them.
        seed: Of the order, and of when exactly a request is given up.
    """
    chance = random.Random(seed)
    # The whole splats take long enough to be given up at any moment.
    large = [number for number, request in enumerate(good) if (request.output, dict(request.options)) in _WHOLE]
    bad, cancelled = _bad(faults, chance), _cancelled(good, large, moments, chance)
    cases: list[Case] = []
    while len(cases) < num_requests:
        size = min(BLOCK, num_requests - len(cases))
        num_bad, num_cancelled = round(size * bad_share), round(size * cancelled_share)
        block = [next(bad) for _ in range(num_bad)] + [next(cancelled) for _ in range(num_cancelled)]
        for place in range(size - len(block)):
            number = place % len(good)
            request = good[number]
            block.append(Case(kind="good", name=request.output, request=request, expected="ok", recipe=number))
        chance.shuffle(block)
        cases += block
    return cases


def _bad(faults: Sequence[Fault], chance: random.Random) -> Iterator[Case]:
    for fault in cycle(chance.sample(faults, len(faults))):
        yield Case(kind="bad", name=fault.name, request=fault.request, expected=fault.expected)


def _cancelled(
    good: Sequence[Request], large: Sequence[int], moments: Sequence[str], chance: random.Random
) -> Iterator[Case]:
    for moment in cycle(moments):
        number = chance.choice(large)
        request = replace(good[number], by_url=False)
        yield Case(
            kind="cancelled",
            name=moment,
            request=request,
            expected="cancelled",
            recipe=number,
            fraction=chance.random(),
        )

"""A mix of good, bad and cancelled requests, which a seed determines.

Requests come in blocks of 50. Each block has the same good requests in another order, so that the memory after two
blocks can be compared.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Literal

from benchmarks.soak.images import NUM_IMAGES, PANORAMA, Photograph, photograph

BLOCK = 50
ARRAYS = ("json", "npz")
"""Outputs that only HTTP has."""

Kind = Literal["good", "bad", "cancelled"]
Frontend = Literal["http", "cog"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request in no frontend's own form.

    Attributes:
        image: Content of an image file, or a URL in its place; None sends no image.
        depth: Content of a depth map.
        options: Options of the prediction, without the output's format.
        output: A format of splats, or one of `ARRAYS`.
        by_url: Whether the server has to fetch the image.
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
        body: Bytes on the wire.
        content_type: Value of Content-Type.
        num_bytes_claimed: Value of Content-Length; None is the true length.
    """

    body: bytes
    content_type: str
    num_bytes_claimed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One request of the mix.

    Attributes:
        kind: Kind of the request.
        name: Name for people: the output's format, the fault, or the moment of cancelling.
        request: The request.
        expected: The only right outcome: `ok`, `cancelled`, or the server's refusal.
        recipe: Number of the right answer; for a cancelled request, the answer if cancelling came too late.
        fraction: Point within the moment at which the request is cancelled, from 0 to 1.
    """

    kind: Kind
    name: str
    request: Request | Raw
    expected: str
    recipe: int | None = None
    fraction: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault of a request.

    Attributes:
        name: Name for people.
        request: The request.
        expected: The frontend's refusal.
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


def recipes(frontend: str, num_recipes: int, *, without: Sequence[str] = ()) -> list[Request]:
    """Return different good requests, two of them for whole splats.

    Args:
        frontend: `cog` or `http`; an output that it does not have becomes a `ply`.
        num_recipes: Number of requests.
        without: Formats that are not installed.
    """
    photographs: dict[int, Photograph] = {}
    made = []
    for number in range(num_recipes):
        which = number % NUM_IMAGES
        output, options = _OUTPUTS[number % len(_OUTPUTS)]
        if output in without or (frontend == "cog" and output in ARRAYS):
            output = "ply"
        if number == BLOCK // 2 and "mp4" not in without:
            # One film is enough, since a film of any other image takes ten seconds.
            which, output, options = PANORAMA, "mp4", {"max_gaussians": 500}
        photographs.setdefault(which, photograph(which))
        made.append(
            Request(
                image=photographs[which].image,
                depth=photographs[which].depth,
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
    """Return the requests in their order.

    Args:
        good: Good requests, by `recipes`.
        faults: All faults of the frontend; each has its turn.
        moments: Moments at which a request may be cancelled; each has its turn.
        num_requests: Number of requests.
        bad_share: Share of bad requests.
        cancelled_share: Share of cancelled requests.
        seed: Seed of the order and of the moments.
    """
    chance = random.Random(seed)
    # Requests for whole splats take long enough to be cancelled at any moment.
    large = [number for number, request in enumerate(good) if (request.output, dict(request.options)) in _WHOLE]
    bad, cancelled = _bad(faults, chance), _cancelled(good, large, moments, chance)
    cases: list[Case] = []
    while len(cases) < num_requests:
        size = min(BLOCK, num_requests - len(cases))
        num_bad, num_cancelled = round(size * bad_share), round(size * cancelled_share)
        block = [next(bad) for _ in range(num_bad)] + [next(cancelled) for _ in range(num_cancelled)]
        for position in range(size - len(block)):
            number = position % len(good)
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

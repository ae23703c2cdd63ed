"""Mutations of well-formed inputs: accidents that happen to files, and tricks of attackers."""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

_EXTREMES = (0, 1, -1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63, 2**64 - 1)
_INTEGERS = tuple(
    {
        struct.pack(f"{order}{kind}", value & (1 << 8 * size) - 1)
        for value in _EXTREMES
        for kind, size in (("B", 1), ("H", 2), ("I", 4), ("Q", 8))
        for order in "<>"
    }
)
_GARBAGE = (b"PK\x03\x04", b"\xff\xd8\xff\xe1", b"<script>alert(1)</script>", b"\0" * 64, b"\xff" * 64, b"%PDF-1.7\n")
Edit = Callable[[bytes, list[bytes], Random], bytes]
"""Function that derives an input from another one; it may use all seeds."""


def truncations(seeds: list[bytes], num_cuts: int = 100) -> Iterator[bytes]:
    """Yields every seed cut at evenly spaced places."""
    for content in seeds:
        yield from dict.fromkeys(content[: len(content) * cut // num_cuts] for cut in range(num_cuts))


def _flip(content: bytes, seeds: list[bytes], random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + bytes(byte ^ 1 << random.randrange(8) for byte in content[at : at + 1]) + content[at + 1 :]


def _replace(content: bytes, seeds: list[bytes], random: Random) -> bytes:
    return _put(content, random.randbytes(random.randrange(1, 9)), random)


def _replace_number(content: bytes, seeds: list[bytes], random: Random) -> bytes:
    return _put(content, random.choice(_INTEGERS), random)


def _put(content: bytes, what: bytes, random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + what + content[at + len(what) :]


def _insert_garbage(content: bytes, seeds: list[bytes], random: Random) -> bytes:
    at = random.choice((0, len(content), random.randrange(len(content) + 1)))
    return content[:at] + random.choice(_GARBAGE) + content[at:]


def _delete(content: bytes, seeds: list[bytes], random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + content[at + random.randrange(1, 65) :]


def _duplicate(content: bytes, seeds: list[bytes], random: Random) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + content[at : at + random.randrange(1, 65)] * random.randrange(1, 9) + content[at:]


def _splice(content: bytes, seeds: list[bytes], random: Random) -> bytes:
    tail = random.choice(seeds)
    return content[: random.randrange(len(content) + 1)] + tail[random.randrange(len(tail) + 1) :]


_EDITS: list[Edit] = [_flip, _replace, _replace_number, _insert_garbage, _delete, _duplicate, _splice]


class _Enough(Exception):  # noqa: N818 - not an error
    """Signal that ends the search of hypothesis."""


def mutate(
    seeds: list[bytes], examine: Callable[[bytes], None], *, num: int, seed_number: int, until: Callable[[], bool]
) -> None:
    """Examines `num` different inputs derived from the seeds by hypothesis; the same ones for the same seed number.

    Args:
        seeds: Well-formed inputs.
        examine: Takes an input, and raises nothing.
        num: Number of inputs.
        seed_number: Seed of the random numbers.
        until: Returns True to stop earlier.
    """
    seen: set[bytes] = set()

    # Hypothesis only generates. If it judged too, it would stop at the first finding and try to shrink it.
    @seed(seed_number)
    @settings(
        max_examples=100 * num,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    # Hypothesis chooses the edits, and true random numbers choose their positions: hypothesis prefers small numbers,
    # and would change the first bytes of a file most of the time.
    @given(
        index=st.integers(0, len(seeds) - 1),
        edits=st.lists(st.sampled_from(_EDITS), min_size=1, max_size=3),
        random=st.randoms(use_true_random=True),
    )
    def one(index: int, edits: list[Edit], random: Random) -> None:
        if len(seen) >= num or until():
            raise _Enough
        content = seeds[index]
        for edit in edits:
            content = edit(content, seeds, random)
        digest = hashlib.blake2b(content, digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            examine(content)

    with suppress(_Enough):
        one()


def deadline(seconds: float | None) -> Callable[[], bool]:
    """Returns a function that is True once the seconds have passed."""
    end = None if seconds is None else time.monotonic() + seconds
    return lambda: end is not None and time.monotonic() >= end

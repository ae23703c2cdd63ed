"""Well-formed inputs, made ill: what files suffer, and what people do to them who look for a way in."""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

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
_ONE = 1 << 20
"""A position of 1: positions are shares of the length, so that one edit fits every seed."""

Edit = Callable[[bytes, list[bytes]], bytes]
"""Makes an input of another, with all seeds at hand."""


def truncations(seeds: list[bytes]) -> Iterator[bytes]:
    """Every seed cut at each hundredth of its length."""
    for content in seeds:
        yield from dict.fromkeys(content[: len(content) * percent // 100] for percent in range(100))


def _flip(position: int, bit: int) -> Edit:
    def edit(content: bytes, seeds: list[bytes]) -> bytes:
        at = position * len(content) // _ONE
        return content[:at] + bytes(byte ^ 1 << bit for byte in content[at : at + 1]) + content[at + 1 :]

    return edit


def _put(position: int, what: bytes) -> Edit:
    def edit(content: bytes, seeds: list[bytes]) -> bytes:
        at = position * len(content) // _ONE
        return content[:at] + what + content[at + len(what) :]

    return edit


def _insert(position: int, what: bytes) -> Edit:
    def edit(content: bytes, seeds: list[bytes]) -> bytes:
        at = position * (len(content) + 1) // _ONE
        return content[:at] + what + content[at:]

    return edit


def _delete(position: int, length: int) -> Edit:
    def edit(content: bytes, seeds: list[bytes]) -> bytes:
        at = position * len(content) // _ONE
        return content[:at] + content[at + length :]

    return edit


def _duplicate(position: int, length: int, times: int) -> Edit:
    def edit(content: bytes, seeds: list[bytes]) -> bytes:
        at = position * len(content) // _ONE
        return content[:at] + content[at : at + length] * times + content[at:]

    return edit


def _splice(position: int, other: int, start: int) -> Edit:
    def edit(content: bytes, seeds: list[bytes]) -> bytes:
        tail = seeds[other % len(seeds)]
        return content[: position * len(content) // _ONE] + tail[start * len(tail) // _ONE :]

    return edit


_POSITIONS, _LENGTHS = st.integers(0, _ONE - 1), st.integers(1, 64)
_EDITS: st.SearchStrategy[Edit] = st.one_of(
    st.builds(_flip, _POSITIONS, st.integers(0, 7)),
    st.builds(_put, _POSITIONS, st.binary(min_size=1, max_size=8)),
    st.builds(_put, _POSITIONS, st.sampled_from(_INTEGERS)),
    st.builds(_insert, _POSITIONS | st.just(0) | st.just(_ONE - 1), st.sampled_from(_GARBAGE)),
    st.builds(_delete, _POSITIONS, _LENGTHS),
    st.builds(_duplicate, _POSITIONS, _LENGTHS, st.integers(1, 8)),
    st.builds(_splice, _POSITIONS, st.integers(0, 63), _POSITIONS),
)


class _Enough(Exception):  # noqa: N818  # It is no error.
    """Ends hypothesis' search."""


def mutate(
    seeds: list[bytes], examine: Callable[[bytes], None], *, num: int, seed_number: int, until: Callable[[], bool]
) -> None:
    """Examines `num` different inputs that hypothesis makes of the seeds; the same ones for the same seed number.

    Args:
        seeds: Well-formed inputs.
        examine: Takes an input, and raises nothing.
        num: How many.
        seed_number: Of the random numbers.
        until: Says when to stop earlier.
    """

    seen: set[bytes] = set()

    # Hypothesis draws, and does not judge: so it does not end with the first finding, nor tries the input again.
    @seed(seed_number)
    @settings(
        max_examples=100 * num,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(index=st.integers(0, len(seeds) - 1), edits=st.lists(_EDITS, min_size=1, max_size=4))
    def one(index: int, edits: list[Edit]) -> None:
        if len(seen) >= num or until():
            raise _Enough
        content = seeds[index]
        for edit in edits:
            content = edit(content, seeds)
        digest = hashlib.blake2b(content, digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            examine(content)

    with suppress(_Enough):
        one()


def deadline(seconds: float | None) -> Callable[[], bool]:
    """Says whether so many seconds have passed."""
    end = None if seconds is None else time.monotonic() + seconds
    return lambda: end is not None and time.monotonic() >= end

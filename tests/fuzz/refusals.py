"""The check that a hostile input is refused, with the right error and at a low price."""

from __future__ import annotations

import time
from collections.abc import Callable

from sharp_cog.errors import SharpError
from tests.fuzz.harness import MAX_CPU_S, MAX_GROWTH_BYTES, peak_bytes, reset_peak, wrong_with


def refusal(read: Callable[[bytes], object], content: bytes, error: type[SharpError]) -> str:
    """Return the message of the error that `read` must raise, after checking its type, its words and its cost."""
    reset_peak()
    before, start = peak_bytes(), time.process_time()
    try:
        result = read(content)
    except error as raised:
        refused = raised
    else:
        raise AssertionError(f"there is a result: {result!r:.200}")
    cpu_s, growth = time.process_time() - start, peak_bytes() - before
    assert wrong_with(refused) is None
    assert cpu_s < MAX_CPU_S
    assert growth < MAX_GROWTH_BYTES
    return str(refused)

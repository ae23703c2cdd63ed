"""What a run can tell while it goes on."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Progress:
    """What a run can tell while it goes on, beyond its journal.

    Attributes:
        start: When it began, by `time.time`.
        num_scanned: Photographs that the source gave.
        waiting: Sizes of the queues by name.
        is_paused: Whether a file pauses it.
        rate_limit_left: Requests left at the source in this hour; None where it does not say.
    """

    start: float = field(default_factory=time.time)
    num_scanned: int = 0
    waiting: dict[str, int] = field(default_factory=dict)
    is_paused: bool = False
    rate_limit_left: int | None = None

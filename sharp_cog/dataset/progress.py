"""Figures of a run while it works, beyond those in its journal."""

from __future__ import annotations

import csv
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sharp_cog.files.atomic import cannot_write

_GPU_COLUMNS = ("time", "photo", "allocated_bytes", "reserved_bytes", "peak_bytes", "free_bytes")


@dataclass
class Progress:
    """The state of a run for its display.

    Attributes:
        queue_sizes: Number of items that wait in each queue, by its name.
        is_paused: Whether the pause file exists.
        rate_limit_left: Number of requests that the source still allows in this hour; None if it does not say.
    """

    queue_sizes: dict[str, int] = field(default_factory=dict)
    is_paused: bool = False
    rate_limit_left: int | None = None


class GpuLog:
    """A CSV file with a row of GPU memory for each photograph; the figures are empty without a CUDA device."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, photo_id: str) -> None:
        """Append a row; its peak covers the time since the last row.

        Raises:
            OutputError: The file cannot be written.
        """
        is_new = not self._path.exists()
        figures: list[int | str] = ["", "", "", ""]
        if torch.cuda.is_available():
            free, _ = torch.cuda.mem_get_info()
            peak = torch.cuda.max_memory_allocated()
            figures = [torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), peak, free]
            torch.cuda.reset_peak_memory_stats()
        try:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                if is_new:
                    writer.writerow(_GPU_COLUMNS)
                writer.writerow([f"{time.time():.3f}", photo_id, *figures])
        except OSError as error:
            raise cannot_write(self._path, error) from error

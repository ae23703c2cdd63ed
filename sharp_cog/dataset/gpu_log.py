"""A log of the GPU memory that each photograph took."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import torch

from sharp_cog.files.atomic import cannot_write

_COLUMNS = ("time", "photo", "allocated_bytes", "reserved_bytes", "peak_bytes", "free_bytes")


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
                    writer.writerow(_COLUMNS)
                writer.writerow([f"{time.time():.3f}", photo_id, *figures])
        except OSError as error:
            raise cannot_write(self._path, error) from error

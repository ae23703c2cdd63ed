"""How much memory of the GPU each photograph took, as a table."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import torch

from sharp_cog.files.atomic import cannot_write

_COLUMNS = ("time", "photo", "allocated_bytes", "reserved_bytes", "peak_bytes", "free_bytes")


class GpuLog:
    """Appends a row a photograph to a file; where there is no CUDA device, its figures are empty."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, photo_id: str) -> None:
        """Appends a row; the peak counts from the last one on.

        Raises:
            OutputError: It cannot be written.
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

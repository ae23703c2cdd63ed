"""Small pictures for runs of tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def photographs(folder: Path, count: int) -> Path:
    """Fills a folder with pictures; a few sizes and colours, so that they are not all the same."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        pixels = np.full((32, 32 + number % 3, 3), number % 256, np.uint8)
        Image.fromarray(pixels).save(folder / f"photo{number:05}.png")
    return folder

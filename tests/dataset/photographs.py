"""Small images for test runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def photographs(folder: Path, count: int) -> Path:
    """Fill a folder with images of a few sizes and colours, and return the folder."""
    folder.mkdir(exist_ok=True)
    for number in range(count):
        pixels = np.full((32, 32 + number % 3, 3), number % 256, np.uint8)
        Image.fromarray(pixels).save(folder / f"photo{number:05}.png")
    return folder

"""Files of small images and depth maps."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from tests.data.parity import synthetic


def png(width: int = 96, height: int = 64, seed: int = 0) -> bytes:
    """Return a PNG of a synthetic photograph."""
    file = io.BytesIO()
    Image.fromarray(synthetic.photograph(width, height, seed)).save(file, "PNG")
    return file.getvalue()


def npy(width: int = 96, height: int = 64, *, metres: float | None = None) -> bytes:
    """Return a .npy of a depth map: ground from 3 m at the top to 1.5 m at the bottom, or a wall."""
    near, far = (1.5, 3.0) if metres is None else (metres, metres)
    file = io.BytesIO()
    # Disparity is linear in the pixels of a plane: numbers of another shape would not be recognised as metres.
    disparity = np.linspace(1 / far, 1 / near, width * height).reshape(height, width)
    np.save(file, (1 / disparity).astype(np.float32))
    return file.getvalue()

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
    """Return a .npy of a depth map: a slope from 1.5 m to 3 m, or a plane."""
    near, far = (1.5, 3.0) if metres is None else (metres, metres)
    file = io.BytesIO()
    np.save(file, np.linspace(near, far, width * height, dtype=np.float32).reshape(height, width))
    return file.getvalue()

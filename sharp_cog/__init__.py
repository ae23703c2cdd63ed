"""One photograph in, one 3D Gaussian splat out, with Apple's SHARP model.

Importing this package loads nothing heavy: each public name is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

# Type checkers and editors do not run `__getattr__`, so they find the names here.
if TYPE_CHECKING:
    from sharp_cog.config.options import PredictOptions
    from sharp_cog.config.settings import Settings
    from sharp_cog.errors import InputError, SharpError
    from sharp_cog.geometry.camera import Camera
    from sharp_cog.geometry.gaussians import Gaussians
    from sharp_cog.pipeline.pipeline import SharpPipeline
    from sharp_cog.pipeline.prediction import Prediction

__version__ = "0.2.0"

_HOMES = {
    "Camera": "sharp_cog.geometry.camera",
    "Gaussians": "sharp_cog.geometry.gaussians",
    "InputError": "sharp_cog.errors",
    "PredictOptions": "sharp_cog.config.options",
    "Prediction": "sharp_cog.pipeline.prediction",
    "Settings": "sharp_cog.config.settings",
    "SharpError": "sharp_cog.errors",
    "SharpPipeline": "sharp_cog.pipeline.pipeline",
}

__all__ = [
    "Camera",
    "Gaussians",
    "InputError",
    "PredictOptions",
    "Prediction",
    "Settings",
    "SharpError",
    "SharpPipeline",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sharp_cog' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

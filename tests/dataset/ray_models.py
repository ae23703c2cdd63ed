"""Models as the actors of a cluster load them: they leave marks in a folder, and fail as their picture's width says."""

from __future__ import annotations

import os
import time
from pathlib import Path

from sharp_cog.config.settings import Settings
from sharp_cog.errors import CheckpointMissingError, DeviceError
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.pipeline.prediction import Decoded, Prediction
from tests.splats import random_gaussians

FOREIGN, LOCKED, DEADLY, DEVICE_ONCE, DEVICE_ALWAYS = 101, 102, 103, 104, 105
"""Widths of pictures that fail: with an error that is not ours, one that cannot travel, by killing the process, and
by a device that fails.
"""


class _LockedError(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


class Watched(SharpPipeline):
    """Lift that says which process is at it: `busy-<pid>` while it predicts, `began-<pid>-...` for each prediction."""

    folder: Path
    seconds = 0.0

    def predict(self, decoded: Decoded) -> Prediction:
        pid = os.getpid()
        (self.folder / f"began-{pid}-{time.time_ns()}").touch()
        busy = self.folder / f"busy-{pid}"
        busy.touch()
        time.sleep(self.seconds)
        try:
            return self._prediction(decoded)
        finally:
            busy.unlink()

    def _prediction(self, decoded: Decoded) -> Prediction:
        return super().predict(decoded)


class Small(Watched):
    """Fifty Gaussians of any picture."""

    def _prediction(self, decoded: Decoded) -> Prediction:
        width = decoded.source.camera.width
        if width == FOREIGN:
            raise ZeroDivisionError("by nothing")
        if width == LOCKED:
            raise _LockedError("cannot", "travel")
        if width == DEADLY:
            os._exit(1)
        mark = self.folder / "device-failed"
        if width == DEVICE_ALWAYS or (width == DEVICE_ONCE and not mark.exists()):
            mark.touch()
            raise DeviceError("the device failed")
        return Prediction(
            gaussians=random_gaussians(50), camera=decoded.source.camera, options=decoded.options, timings={}
        )


def load_lift(folder: Path, seconds: float) -> SharpPipeline:
    return _loaded(Watched, folder, seconds)


def load_small(folder: Path, seconds: float) -> SharpPipeline:
    return _loaded(Small, folder, seconds)


def load_nothing() -> SharpPipeline:
    raise CheckpointMissingError("there is no checkpoint")


def _loaded(kind: type[Watched], folder: Path, seconds: float) -> SharpPipeline:
    pipeline = kind.load(Settings(model="lift", device="cpu"))
    assert isinstance(pipeline, Watched)
    pipeline.folder, pipeline.seconds = folder, seconds
    (folder / f"loaded-{os.getpid()}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    return pipeline

"""Models that the actors of a cluster load: they leave marks in a folder, and fail as the image's width says."""

from __future__ import annotations

import os
import time
from pathlib import Path

from sharp_cog.config.settings import Settings
from sharp_cog.errors import CheckpointMissingError, DeviceError
from sharp_cog.imaging.images import SourceImage
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.pipeline.request import Request
from tests.splats import random_gaussians

UNEXPECTED = 101
"""Width of an image that fails with an error that is not ours."""
UNPICKLABLE = 102
"""Width of an image whose error cannot be pickled."""
DEADLY = 103
"""Width of an image that kills the process."""
DEVICE_ONCE = 104
"""Width of an image at which the device fails once."""
DEVICE_ALWAYS = 105
"""Width of an image at which the device fails every time."""


class _UnpicklableError(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


class Watched(SharpPipeline):
    """Lift that marks its process: `busy-<pid>` while it predicts, `began-<pid>-...` for each prediction."""

    folder: Path
    seconds = 0.0

    def predict(self, request: Request) -> Prediction:
        pid = os.getpid()
        (self.folder / f"began-{pid}-{time.time_ns()}").touch()
        busy = self.folder / f"busy-{pid}"
        busy.touch()
        time.sleep(self.seconds)
        try:
            return self._predict_watched(self.decode(request))
        finally:
            busy.unlink()

    def _predict_watched(self, request: Request) -> Prediction:
        return super().predict(request)


class Small(Watched):
    """Predicts fifty Gaussians for every image."""

    def _predict_watched(self, request: Request) -> Prediction:
        assert isinstance(request.image, SourceImage)
        camera = request.image.camera
        if camera.width == UNEXPECTED:
            raise ZeroDivisionError("by nothing")
        if camera.width == UNPICKLABLE:
            raise _UnpicklableError("cannot", "travel")
        if camera.width == DEADLY:
            os._exit(1)
        mark = self.folder / "device-failed"
        if camera.width == DEVICE_ALWAYS or (camera.width == DEVICE_ONCE and not mark.exists()):
            mark.touch()
            raise DeviceError("the device failed")
        return Prediction(predicted=random_gaussians(50), camera=camera, options=request.options, key=request.key)


def load_lift(folder: Path, seconds: float) -> SharpPipeline:
    return _load(Watched, folder, seconds)


def load_small(folder: Path, seconds: float) -> SharpPipeline:
    return _load(Small, folder, seconds)


def load_nothing() -> SharpPipeline:
    raise CheckpointMissingError("there is no checkpoint")


def load_deadly() -> SharpPipeline:
    os._exit(1)


def _load(kind: type[Watched], folder: Path, seconds: float) -> SharpPipeline:
    pipeline = kind.load(Settings(model="lift", device="cpu"))
    assert isinstance(pipeline, Watched)
    pipeline.folder, pipeline.seconds = folder, seconds
    (folder / f"loaded-{os.getpid()}").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    return pipeline

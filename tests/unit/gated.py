"""A pipeline whose device waits until a test lets it go on."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import cast

import torch

from sharp_cog.camera import Camera
from sharp_cog.images import SourceImage
from sharp_cog.options import PredictOptions
from sharp_cog.pipeline import Predictor, SharpPipeline
from sharp_cog.prediction import Decoded, Prediction
from sharp_cog.serving.settings import Settings
from tests.unit.splats import random_gaussians


class Gated(SharpPipeline):
    """Takes any bytes for a picture; its splat has as many Gaussians as the picture has bytes.

    Attributes:
        gate: Closed, the device waits.
        at_once: How many predictions are under way, and the most that ever were.
        predicted: The pictures that came to the device, by their number of bytes.
        failure: What the device raises, if anything.
    """

    def __init__(self, *, is_open: bool = True) -> None:
        self.settings = Settings(model="lift")
        self.device = torch.device("cpu")
        self.predictor = cast(Predictor, None)
        self.gate = threading.Event()
        self.at_once, self.most_at_once = 0, 0
        self.predicted: list[int] = []
        self.failure: Exception | None = None
        if is_open:
            self.gate.set()

    def decode(
        self, image_bytes: bytes, options: PredictOptions | None = None, *, depth_bytes: bytes | None = None
    ) -> Decoded:
        num_bytes = len(image_bytes)
        camera = Camera(width=num_bytes, height=1, focal_length_px=1.0)
        source = SourceImage(
            rgb=torch.zeros(1, num_bytes, 3, dtype=torch.uint8).numpy(), camera=camera, image_format="none"
        )
        return Decoded(source=source, depth_map=None, options=options or PredictOptions(), decode_s=0.0)

    def predict(self, decoded: Decoded) -> Prediction:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            assert self.gate.wait(30)
            self.predicted.append(decoded.source.camera.width)
            if self.failure is not None:
                raise self.failure
            return Prediction(
                gaussians=random_gaussians(decoded.source.camera.width),
                camera=decoded.source.camera,
                options=decoded.options,
                timings={"decode": decoded.decode_s, "network": 0.1},
            )
        finally:
            self.at_once -= 1

    def warm_up(self) -> float:
        return 0.0


def write(path: Path, prediction: Prediction) -> None:
    path.write_text(str(len(prediction.gaussians)))

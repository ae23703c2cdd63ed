"""A pipeline whose device waits until a test opens a gate."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import torch

from sharp_cog.config.settings import Settings
from sharp_cog.geometry.camera import Camera
from sharp_cog.imaging.images import SourceImage
from sharp_cog.pipeline import output
from sharp_cog.pipeline.pipeline import SharpPipeline
from sharp_cog.pipeline.prediction import Prediction
from sharp_cog.pipeline.request import Request
from sharp_cog.runtime.lift import LiftPredictor
from tests.splats import random_gaussians


class Gated(SharpPipeline):
    """Takes any bytes for an image; its splat has as many Gaussians as the image has bytes.

    Attributes:
        gate: Event that predictions wait for.
        at_once: Number of predictions under way.
        most_at_once: Maximum of `at_once` so far.
        predicted: Numbers of bytes of the images that reached the device, in order.
        failure: Error that the device raises, or None.
    """

    def __init__(self, *, is_open: bool = True) -> None:
        cpu = torch.device("cpu")
        super().__init__(LiftPredictor(device=cpu), device=cpu, settings=Settings(model="lift"))
        self.gate = threading.Event()
        self.at_once, self.most_at_once = 0, 0
        self.predicted: list[int] = []
        self.failure: Exception | None = None
        if is_open:
            self.gate.set()

    def decode(self, request: Request) -> Request:
        output.check(request.options, viewer_dir=self.settings.viewer_dir)
        if request.is_decoded:
            return request
        assert isinstance(request.image, bytes)
        num_bytes = len(request.image)
        camera = Camera(width=num_bytes, height=1, focal_length_px=1.0)
        pixels = torch.zeros(1, num_bytes, 3, dtype=torch.uint8).numpy()
        source = SourceImage(rgb=pixels, camera=camera, image_format="none")
        # The depth is dropped, since a request with the bytes of a depth file would count as not yet decoded.
        return replace(request, image=source, depth=None)

    def predict(self, request: Request) -> Prediction:
        request = self.decode(request)
        assert isinstance(request.image, SourceImage)
        camera = request.image.camera
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            assert self.gate.wait(30)
            self.predicted.append(camera.width)
            if self.failure is not None:
                raise self.failure
            return Prediction(
                predicted=random_gaussians(camera.width),
                camera=camera,
                options=request.options,
                timings={"decode": request.decode_s, "network": 0.1},
                key=request.key,
            )
        finally:
            self.at_once -= 1

    def warm_up(self) -> float:
        return 0.0


def write(path: Path, prediction: Prediction) -> None:
    path.write_text(str(len(prediction.gaussians)))
